"""What depends on what: fine-tunes by the studies that notebooks make themselves, and what a job asks for."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from helpers import rest_slow
from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepSpec
from sinklora.reproduction.extension.recipe import base_of
from sinklora.reproduction.notebooks import plan
from sinklora.reproduction.places import Places
from sinklora.reproduction.report.experiments import load_experiments
from sinklora.reproduction.workflow.launch import (
    WorkflowRunningError,
    only_workflow,
    snakemake,
)
from sinklora.reproduction.workflow.listing import listed
from sinklora.reproduction.workflow.plan import job_name, make_plan
from sinklora.reproduction.workflow.reads import reads_hash
from sinklora.reproduction.workflow.resources import PROCESS_MB, Machine, of_fine_tune, of_notebook
from sinklora.reproduction.workflow.trainings import STUDIES, all_parameters, fine_tunes, mark_of
from sinklora.train.spec import TrainSpec
from step_shapes import model_folder
from tiny_training import make_place, spec_in

NOTEBOOKS = Path("notebooks")

EXPERIMENTS = {experiment.notebook: experiment for experiment in load_experiments()}


def tunes(notebook: str, profile: str) -> tuple[TrainSpec, ...]:
    experiment = EXPERIMENTS[notebook]
    parameters = all_parameters(experiment, experiment.parameters[profile], NOTEBOOKS)
    return fine_tunes(notebook, parameters)


@pytest.mark.parametrize(
    ("notebook", "profile", "count"),
    [
        ("02_perplexity", "smoke", 3 + 1 + 3),  # rates (of seed 0), one step in place of two, seed 1
        ("02_perplexity", "full", 3 * 5 + 2 * 3 + 5 * 4),  # seed 0 is among the rates, 60 steps too
        ("04_retrieval", "smoke", 2),
        ("05_longbench", "full", 3),
        ("08_ablations", "quick", 12),  # at their own rates: what is tried is what is compared
        ("09_real_model", "gpu", 2 * 3 * 4),
    ],
)
def test_a_notebooks_fine_tunes_each_once(notebook: str, profile: str, count: int) -> None:
    found = tunes(notebook, profile)
    names = {job_name(spec) for spec in found}
    assert len(names) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)
    assert len(found) == count


@pytest.mark.parametrize(
    ("notebook", "changes", "words"),
    [
        ("02_perplexity", {"patterns": ["full", "s2", "sf"]}, "own_attention=.*leave out 'short', or add it"),
        ("02_perplexity", {"patterns": ["short", "s2", "sf"]}, "patterns=.*: add 'full'; every pattern"),
        ("02_perplexity", {"own_attention": []}, r"own_attention=\[\]: expected at least one of patterns"),
        ("02_perplexity", {"equal_time": ["full"]}, r"equal_time=\['full'\]: expected some of \['short',"),
        ("02_perplexity", {"equal_time": ["sf_shifted"]}, "equal_time=.*, which patterns names beside"),
        ("02_perplexity", {"equal_time": []}, r"equal_time=\[\]: expected some of"),
        ("02_perplexity", {"bounded_patterns": ["s2"]}, "bounded_patterns=.*: add 'full', 'sf'; what"),
        ("02_perplexity", {"bounded_patterns": ["full", "sf", "sff"]}, "sff"),
        ("02_perplexity", {"bounded_prompt": 2048}, "bounded_prompt=2048: expected less than the 2048"),
        ("02_perplexity", {"test_contexts": [1024]}, "test_contexts=.*: add 512, 2048; there patterns"),
        ("08_ablations", {"timed_steps": ["sf", "sf_growth"]}, "timed_steps=.*leave out 'sf_growth', or add"),
        ("08_ablations", {"schedules": []}, "schedules=.*: expected at least one"),
        ("08_ablations", {"shifted": []}, "shifted=.*: expected at least one"),
        ("08_ablations", {"lengths": [4096]}, "contexts=.4096,.: expected at most the 2048 tokens"),
        ("09_real_model", {"patterns": ["full", "short", "sf"]}, "own_attention=.*leave out 's2', or add it"),
        ("09_real_model", {"patterns": ["short", "s2", "sf"]}, "patterns=.*: add 'full'; every pattern"),
        ("09_real_model", {"own_attention": []}, r"own_attention=\[\]: expected at least one of patterns"),
        ("09_real_model", {"contexts": [16384]}, "contexts=.*: add 8192; there patterns"),
        ("09_real_model", {"positions": ["yarn", "line"]}, "positions.*='line': expected one of linear"),
    ],
)
def test_what_no_table_could_be_made_of_is_refused_before_it_is_trained(
    notebook: str, changes: dict[str, Any], words: str
) -> None:
    declared = all_parameters(EXPERIMENTS[notebook], changes, NOTEBOOKS)
    with pytest.raises(ValueError, match=words):
        fine_tunes(notebook, declared)


@pytest.mark.parametrize("changes", [{"patterns": ["full", "s2"]}, {"test_contexts": [2048]}])
def test_without_sf_attn_no_more_is_asked_for_than_is_read(changes: dict[str, Any]) -> None:
    given = {"patterns": ["full", "s2"], "own_attention": ["s2"], "equal_time": ["s2"], **changes}
    assert fine_tunes("02_perplexity", all_parameters(EXPERIMENTS["02_perplexity"], given, NOTEBOOKS))


# What a notebook trains or measures with, and by what it refuses its parameters.
FIRST_WORK = {
    "02_perplexity": ("search(plan", ["study.study_of(plan", "bounded.bounded_study_of("]),
    "03_longest_context": ("longest_context.longest_contexts(", ["longest_context.check_ladder(plan"]),
    "08_ablations": ("search(plan", ["study.methods_of(", "study.ablation_study(", "study.studies_at("]),
    "09_real_model": ("whole.rates(", ["real_study.study_of("]),
    "10_replay": ("replay_study.measure_replay(", ["replay_study.ReplayStudy(", "study.check_budget("]),
}


@pytest.mark.parametrize("notebook", FIRST_WORK)
def test_a_notebook_refuses_its_parameters_before_it_works(notebook: str) -> None:
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    work, refusals = FIRST_WORK[notebook]
    assert max(map(source.index, refusals)) < source.index(work)


def test_notebooks_share_their_fine_tunes() -> None:
    shared = set(tunes("02_perplexity", "full")) & set(tunes("08_ablations", "full"))
    assert len(shared) >= 20, "trained once for both"


@pytest.mark.parametrize("notebook", STUDIES)
def test_a_notebook_makes_its_studies_by_the_same_functions(notebook: str) -> None:
    cells = nbformat.read(NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assert re.search(r"(study_of|methods_of|extended_models)\((plan, )?globals\(\)\)", source)
    assert not re.search(r"(Extension|Retrieval)Study\(", source)


def test_every_notebook_that_trains_has_its_studies_named() -> None:
    # A base; at a length that is measured first; on examples that are made first.
    themselves = {"00_base_model", "03_longest_context", "11_chat"}
    rooms = "base_model|extension|retrieval|longbench|ablations|real_model|fine_tuning"
    trains = {
        path.stem
        for path in NOTEBOOKS.glob("*.ipynb")
        if re.search(rf"from sinklora\.reproduction\.({rooms})\b", path.read_text(encoding="utf-8"))
    }
    assert trains == {*STUDIES, *themselves}


def test_the_base_comes_first_where_a_recipe_starts_from_it() -> None:
    parameters = EXPERIMENTS["02_perplexity"].parameters
    assert base_of(parameters["gpu"]) == "runs/gpu-base"
    assert base_of({"base": "data/base"}) == "data/base" and base_of({}) is None


def places(folder: Path) -> Places:
    return Places(Path.cwd(), folder / "results", folder / "runs")


def test_a_plan_has_each_job_with_what_it_needs(tmp_path: Path) -> None:
    chosen = plan(load_experiments(), "smoke", "05,explore")
    made = make_plan(chosen, "smoke", places(tmp_path), Machine.of_profile("smoke"))
    assert list(made.notebooks) == ["05_longbench", "explore"]
    assert {name for job in made.notebooks.values() for name in job.needs} == set(made.fine_tunes)
    assert not made.notebooks["explore"].needs and set(made.resources) == set(made.fine_tunes)
    made.write(tmp_path / "plan.json", places(tmp_path), "python")
    written = json.loads((tmp_path / "plan.json").read_text())
    for name, tune in written["fine_tunes"].items():
        assert TrainSpec.from_dict(tune["spec"]) == made.fine_tunes[name]
    text = listed(made, Machine.of_profile("smoke"))
    assert "1 fine-tunes, 2 notebooks" in text and "| notebook 05_longbench, after 1 fine-tunes" in text


@pytest.mark.slow
def test_memory_and_time_are_those_of_the_estimate(tmp_path: Path) -> None:
    spec = TrainSpec(context=512, steps=10, batch_size=8, micro_batch_size=4)
    slow = of_fine_tune(spec, Machine("cuda", 1.0), {}, tmp_path)
    fast = of_fine_tune(spec, Machine("cuda", 2.0), {}, tmp_path)
    longer = of_fine_tune(dataclasses.replace(spec, steps=20), Machine("cuda", 1.0), {}, tmp_path)
    assert slow.hours == pytest.approx(2 * fast.hours) and longer.hours == pytest.approx(2 * slow.hours)
    assert slow.gpus == 1 and 0.1 < slow.gpu_gib < 4
    on_cpu = of_fine_tune(spec, Machine("cpu", 1.0), {}, tmp_path)
    assert on_cpu.gpus == 0 and on_cpu.memory_mb > slow.gpu_gib * 1000
    assert len(list(tmp_path.glob("estimate-*/finished.json"))) == 4, "kept, one a pattern and device"
    asked = of_notebook([slow, fast], {"memory_gib": 79.0}, Machine("cuda", 1.0))
    assert asked.gpu_gib == 79.0 and asked.hours == 0


@pytest.mark.parametrize(
    ("spec", "step"),
    rest_slow(
        [
            ({"bf16": True}, {"half_base": False}),
            ({"bf16": False}, {"bf16": False}),
            (
                {"base_dtype": "bfloat16", "gradient_checkpointing": True},
                {"fused": True, "checkpointing": True},
            ),
        ],
        1,
    ),
    ids=["base in float32", "all in float32", "base in bfloat16"],
)
def test_memory_is_that_of_the_step_that_trains(
    spec: dict[str, Any], step: dict[str, Any], tmp_path: Path
) -> None:
    """And not of a base in another dtype, nor of a step that makes its loss in another way."""
    base = model_folder(tmp_path / "base")
    tune = of_fine_tune(TrainSpec(base=base, context=64, **spec), Machine("cpu", 1.0), {}, tmp_path)
    steps = [StepSpec(base, 64, name, batch=4, **{"checkpointing": False, **step}) for name in ("full", "sf")]
    peak = max(estimate(one).peak_bytes for one in steps)
    assert tune.memory_mb == PROCESS_MB + math.ceil(peak / 2**20)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_notebook_that_trains_nothing_has_room_for_the_models_that_it_reads(device: str) -> None:
    machine = Machine(device, 1.0)
    small = of_notebook([], {}, machine, ["data/base"]).memory_mb
    large = of_notebook([], {}, machine, ["data/base", "meta-llama/Llama-2-7b-chat-hf"]).memory_mb
    assert PROCESS_MB < small < PROCESS_MB + 100
    of_7b = of_notebook([], {}, dataclasses.replace(machine, notebook_hours=48), ["meta-llama/Llama-2-7b-hf"])
    assert (of_7b.minutes, of_7b.gpu_gib) == (2880, 12.6 if device == "cuda" else 0)
    assert large == PROCESS_MB + math.ceil(4 * 6_738_415_616 / 2**20)
    assert of_notebook([], {}, machine, ["nobody/knows-it"]).memory_mb == PROCESS_MB


def test_the_models_of_a_notebook_are_its_base_and_the_real_one(tmp_path: Path) -> None:
    chosen = plan(load_experiments(), "paper", "06")
    made = make_plan(chosen, "paper", places(tmp_path), Machine.of_profile("paper"))
    assert made.notebooks["06_kv_cache"].resources.memory_mb > 25_000


def test_what_a_notebook_reads_is_known_by_its_contents(tmp_path: Path) -> None:
    """In a source, in a path, below a list or a mapping, in its recipe; names and models are no texts."""
    books, topics, model = (tmp_path / name for name in ("books", "topics", "model"))
    for folder in (books, topics, model):
        folder.mkdir()
        (folder / "a.txt").write_text("first")
    recipe = tmp_path / "recipe.yaml"
    plain = Path("configs/recipes/smoke.yaml").read_text()
    recipe.write_text(plain.replace("prose:", f"dir:{books}").replace("installed:", f"dir:{books}"))
    base = {"base": str(model), "name": "sf", "missing": "dir:nowhere/at/all", "number": 3}
    for named, changed in [
        ({"real_source": f"dir:{books}"}, books),
        ({"real_topics": str(topics)}, topics),
        ({"kept": [{"of": (f"jsonl:{topics / 'a.txt'}",)}]}, topics),
        ({"recipe": str(recipe)}, books),
    ]:
        (changed / "a.txt").write_text("first")
        before = reads_hash(base | named)
        assert before == reads_hash(base | named) != reads_hash(base)
        (model / "a.txt").write_text("second")
        assert reads_hash(base | named) == before, "a model is known by its name"
        (changed / "a.txt").write_text("second")
        assert reads_hash(base | named) != before, named


def test_a_base_that_nobody_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape='nowhere'"):
        of_fine_tune(TrainSpec(base="nowhere"), Machine("cpu", 1.0), {}, tmp_path)


def test_a_fine_tune_that_diverges_stops_no_workflow(tmp_path: Path) -> None:
    """Its notebook counts the rate as infinitely bad; a mark that says so outlasts a further start."""
    spec = spec_in(make_place(tmp_path), learning_rate=1e30, bf16=False)
    mark = mark_of(spec, tmp_path / "runs")
    assert list(mark) == ["diverged"] and mark["diverged"].startswith("learning_rate=1e+30: ")
    assert list(mark_of(dataclasses.replace(spec, learning_rate=1e-3), tmp_path / "runs")) == ["run"]


def test_one_workflow_at_a_time(tmp_path: Path) -> None:
    with (
        only_workflow(tmp_path),
        pytest.raises(WorkflowRunningError, match="another process"),
        only_workflow(tmp_path, wait=False),
    ):
        pytest.fail("two at once")


def test_an_unknown_place_is_named(tmp_path: Path) -> None:
    given: Any = places(tmp_path)
    with pytest.raises(ValueError, match="on='moon': expected one of local, slurm"):
        snakemake(given, tmp_path, "moon", tmp_path / "plan.json")
