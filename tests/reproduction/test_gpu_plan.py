"""The plan for a GPU: read and checked, step by step, stopped in time, taken up again."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from attention_cases import AttentionOptions
from real_model_options import RealModelOptions
from typer.testing import CliRunner

from benchmark_options import options_read
from sinklora.cli import application
from sinklora.hf.model_shapes import SHAPES
from sinklora.reproduction.base_model.study import BaseRecipe
from sinklora.reproduction.extension.recipe import read_recipe
from sinklora.reproduction.gpu import GpuPlan, Step, make_gpu_base, run_steps
from sinklora.reproduction.notebooks import plan as notebook_plan
from sinklora.reproduction.process_family import end_family
from sinklora.reproduction.report.experiments import declared_parameters, load_experiments
from sinklora.train.spec import base_hash

COMMITTED = GpuPlan.read(Path("configs/gpu.yaml"))


# A machine without a GPU, and a checkout without changes.
run_here = partial(run_steps, commit="abc", needs_gpu=False)


def plan(*steps: Step) -> GpuPlan:
    return GpuPlan(Path("none"), None, steps)


def test_the_committed_plan_names_what_there_is() -> None:
    names = [step.name for step in COMMITTED.steps]
    first = ["tests", "real_study", "attention", "kv_cache", "training"]
    first += ["llama_attention", "real_caches", "real_training", "07_efficiency", "09_real_model"]
    assert names[:11] == [*first, "base"] and names[-1] == "11_chat"
    assert COMMITTED.recipe is not None and COMMITTED.recipe.shape == "llama-100m"
    for step in COMMITTED.steps:
        first = step.run[0]
        assert first == "-m" or Path(first).is_file(), step
        if first != "-m":
            assert step.run[step.run.index("--device") + 1] == "cuda", step


def test_the_real_model_is_measured_captured_in_batches_and_trained_beyond_its_length() -> None:
    runs = {step.name: step.run for step in COMMITTED.steps}
    caches, training = (
        options_read(RealModelOptions, runs[name][1:]) for name in ("real_caches", "real_training")
    )
    assert caches.tables == ["caches", "compiled"] and caches.batches == (1, 8, 32)
    assert caches.prompts == (2048, 7936) and {"DynamicCache", "H2O", "Local"} <= set(caches.compared_caches)
    assert training.tables == ["training"] and training.contexts[-1] == 32768
    assert training.compared_patterns == ["sf", "full", "s2"]
    layer, shape = options_read(AttentionOptions, runs["llama_attention"][1:]), SHAPES["llama2-7b"]
    assert (layer.heads, layer.kv_heads) == (shape["num_attention_heads"], shape["num_key_value_heads"])
    assert layer.heads * layer.head_size == shape["hidden_size"] and layer.lengths == (32768,)


def test_every_notebook_with_a_gpu_profile_is_a_step_after_the_base_that_it_starts_from() -> None:
    names = [step.name for step in COMMITTED.steps]
    experiments = {e.notebook: e for e in load_experiments() if "gpu" in e.parameters}
    at = names.index("base")
    apart, from_base = [*names[8:at], names[-1]], names[at + 1 : -1]
    assert {*apart, *from_base} == set(experiments)
    for part in (apart, from_base):
        assert part == [notebook for notebook in experiments if notebook in part], "in the index's order"
    for notebook, experiment in experiments.items():
        [step] = [step for step in COMMITTED.steps if step.name == notebook]
        assert [e.notebook for e, _ in notebook_plan(load_experiments(), "gpu", step.run[-1])] == [notebook]
        declared, given = (
            declared_parameters(Path("notebooks") / f"{notebook}.ipynb"),
            experiment.parameters["gpu"],
        )
        if notebook in apart:
            continue
        if "recipe" in declared:
            assert read_recipe(given["recipe"]).training.base == str(COMMITTED.folder)
        elif "base" in declared:
            assert given["base"] == str(COMMITTED.folder)
        assert (notebook in from_base) == bool({"recipe", "base"} & set(declared))


def test_what_the_last_notebook_costs_is_told() -> None:
    [experiment] = [e for e in load_experiments() if e.notebook == COMMITTED.steps[-1].name]
    given = declared_parameters(Path("notebooks/11_chat.ipynb")) | experiment.parameters["gpu"]
    patterns, rates, seeds = (len(given[name]) for name in ("tuned", "rates", "seeds"))
    tunings = patterns * (rates + seeds - 1)  # the first seed's at the best rate is among the rates
    told = Path("docs/gpu.md").read_text(encoding="utf-8")
    assert f"on {given['tuning_examples']} examples {tunings} times" in told
    assert f"{patterns * seeds} models" in told


def test_a_new_notebook_with_a_gpu_profile_is_a_new_step(tmp_path: Path) -> None:
    index = tmp_path / "experiments.yaml"
    entry = "- {{notebook: {0}, reproduces: x, outputs: [], parameters: {{{1}}}}}\n"
    here = [("20_new", "gpu: {base: runs/gpu-base}"), ("21_apart", "gpu: {}"), ("22_other", "full: {}")]
    here.insert(0, ("11_chat", "gpu: {}"))
    index.write_text("".join(entry.format(*e) for e in here), encoding="utf-8")
    made = GpuPlan.read(Path("configs/gpu.yaml"), index)
    assert [step.name for step in made.steps[8:]] == ["21_apart", "base", "20_new", "11_chat"]
    assert made.steps[-2].run[-2:] == ("--only", "20_new")
    assert made.steps[-3].run[-2:] == ("--config", "configs/gpu.yaml")
    index.write_text("".join(entry.format(*e) for e in here[1:]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"last=.*leave out '11_chat'"):
        GpuPlan.read(Path("configs/gpu.yaml"), index)


def test_without_a_gpu_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    marker, runs = tmp_path / "marker", tmp_path / "runs"
    step = Step("one", ("-c", f"open({str(marker)!r}, 'w')"))
    with pytest.raises(RuntimeError, match="is not available"):
        run_steps(plan(step), runs=runs, minutes=1, commit="abc")
    monkeypatch.setattr(
        signal, "signal", lambda number, handler: None
    )  # the tests' own process stays as it is
    kept = ["--runs", str(runs)]
    commands = [["gpu", *kept], ["gpu", "--base", *kept], ["gpu", "--study", *kept]]
    for profile in ("gpu", "paper"):
        asked = ["--profile", profile, "--only", "02"]
        commands += [["reproduce", *asked], ["workflow", "run", *asked, *kept]]
    for arguments in commands:
        done = CliRunner().invoke(application, arguments)
        assert done.exit_code == 2 and "not available" in done.stderr, (arguments, done.output)
    assert not marker.exists() and not runs.exists()


@pytest.mark.parametrize("job", ["base", "fine-tune x --mark {0}/mark", "notebook x"])
@pytest.mark.parametrize("profile", ["gpu", "paper"])
def test_without_a_gpu_a_job_of_a_workflow_is_not_run(
    job: str, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr("sinklora.reproduction.workflow.commands.ready_environment", lambda wait: None)
    monkeypatch.chdir(tmp_path)
    places = {name: str(tmp_path / name) for name in ("sources", "results", "runs")}
    (tmp_path / "sources").mkdir()
    (tmp_path / "plan.json").write_text(json.dumps({"profile": profile, "places": places}))
    arguments = job.format(tmp_path).split()
    done = CliRunner().invoke(application, ["workflow", *arguments, "--plan", str(tmp_path / "plan.json")])
    assert done.exit_code == 2 and "not available" in done.stderr, done.output
    assert {path.name for path in tmp_path.rglob("*")} == {"sources", "plan.json"}


def test_finished_steps_are_kept_failed_ones_run_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    good = Step("good", ("-c", f"open({str(marker)!r}, 'a').write('x'); print('done')"))
    bad = Step("bad", ("-c", "raise SystemExit('no luck')"))
    said: list[str] = []
    for _ in range(2):
        left = run_here(plan(bad, good), runs=tmp_path, minutes=1, say=said.append)
        assert left == ["bad"]
    assert marker.read_text() == "x", "a finished step runs once"
    assert any("no luck" in line for line in said) and "good: finished before" in said
    assert run_here(plan(bad, good), runs=tmp_path, minutes=1, only="good", say=said.append) == []


@pytest.mark.parametrize("only", ["God", "good,better"])
def test_a_name_that_no_step_begins_with_is_refused(only: str, tmp_path: Path) -> None:
    steps = plan(Step("good", ("-c", "pass")), Step("better", ("-c", "pass")))
    with pytest.raises(ValueError, match=f"only='{only}': the steps are good, better"):
        run_here(steps, runs=tmp_path / "runs", minutes=1, only=only)
    assert not (tmp_path / "runs").exists()


def test_a_finished_step_runs_again_for_another_commit_and_for_files_that_no_commit_holds(
    tmp_path: Path,
) -> None:
    marker = tmp_path / "marker"
    steps = plan(Step("one", ("-c", f"open({str(marker)!r}, 'a').write('x')")))

    def times(commit: str | None) -> int:
        run_here(steps, runs=tmp_path, minutes=1, commit=commit, say=said.append)
        return len(marker.read_text())

    said: list[str] = []
    assert [times(commit) for commit in ("abc", "abc", "def", "abc")] == [1, 1, 2, 2]
    assert not any("no commit's" in line for line in said)
    assert [times(None) for _ in range(3)] == [3, 4, 5]
    assert sum("no commit's" in line for line in said) == 3


def test_steps_keep_their_runs_where_the_plan_keeps_its_own_and_are_known_wherever_that_is(
    tmp_path: Path,
) -> None:
    told, runs = tmp_path / "told", tmp_path / "elsewhere"
    code = f"import sys; open({str(told)!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))"
    step = Step("one", ("-c", code, "--runs", "{runs}"))
    assert run_here(plan(step), runs=runs, minutes=1, say=lambda _: None) == []
    moved = runs.rename(tmp_path / "moved")
    said: list[str] = []
    assert run_here(plan(step), runs=moved, minutes=1, say=said.append) == []
    assert said == ["one: finished before"] and told.read_text() == f"--runs {runs}\n"


def test_every_step_that_keeps_runs_is_told_where() -> None:
    without = [step.name for step in COMMITTED.steps if "--runs" not in step.run]
    assert without == ["tests", "attention", "kv_cache", "llama_attention"]
    for step in COMMITTED.steps:
        assert step.name in without or step.run[step.run.index("--runs") + 1] == "{runs}", step


def test_the_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinklora.reproduction.gpu.LEAST_SECONDS", 0)
    slow, later = Step("slow", ("-c", "import time; time.sleep(60)")), Step("later", ("-c", "pass"))
    said: list[str] = []
    left = run_here(plan(slow, later), runs=tmp_path, minutes=0.02, say=said.append)
    assert left == ["slow", "later"] and "goes on the next time" in said[1]
    assert run_here(plan(later), runs=tmp_path, minutes=1, say=said.append) == []


def gone(pid: int) -> bool:
    """Whether a process ended; one whose status nobody asked for yet is a zombie, which holds nothing."""
    with suppress(psutil.NoSuchProcess):
        psutil.wait_procs([psutil.Process(pid)], timeout=5)
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.parametrize("ending", ["time.sleep(60)", "pass"])
def test_nothing_that_a_step_started_lives_on(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinklora.reproduction.gpu.LEAST_SECONDS", 0)
    started = tmp_path / "started"
    code = (
        "import pathlib, subprocess, time; child = subprocess.Popen(['sleep', '77']); "
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid)); {ending}"
    )
    run_here(plan(Step("parent", ("-c", code))), runs=tmp_path, minutes=0.02, say=lambda _: None)
    assert gone(int(started.read_text()))


def test_a_stopped_notebook_takes_its_kernel_and_what_that_started_along(tmp_path: Path) -> None:
    started, source = tmp_path / "started", tmp_path / "notebook.ipynb"
    cell = (
        "import os, pathlib, subprocess, time\nchild = subprocess.Popen(['sleep', '77'])\n"
        f"pathlib.Path({str(tmp_path / 'writing')!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        f"os.rename({str(tmp_path / 'writing')!r}, {str(started)!r})\ntime.sleep(77)"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)]), source)
    code = f"import papermill; papermill.execute_notebook({str(source)!r}, None, kernel_name='python3')"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        while not started.exists():
            assert process.poll() is None, "the notebook ended before it was stopped"
            time.sleep(0.1)
        kernel, child = map(int, started.read_text().split())
        assert os.getpgid(kernel) != process.pid, "a kernel has a group of its own"
    finally:
        end_family(process)
    assert gone(kernel) and gone(child)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: []", "expected the keys"),
        ("{base: {folder: x, recipe: {layers: 3}}, steps: []}", "layers"),
        ("{base: {folder: x}, steps: [{name: a}]}", "run"),
        ("{base: {folder: x}, steps: [{name: a, run: [b]}, {name: a, run: [c]}]}", "named twice"),
    ],
)
def test_wrong_plans_are_named(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text, encoding="utf-8")
    (tmp_path / "experiments.yaml").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        GpuPlan.read(path, tmp_path / "experiments.yaml")


def test_a_notebook_that_starts_from_another_base_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("{base: {folder: runs/elsewhere}, steps: []}", encoding="utf-8")
    with pytest.raises(
        ValueError, match="folder='runs/elsewhere': 02_perplexity starts from 'runs/gpu-base'"
    ):
        GpuPlan.read(path)


def test_a_local_model_serves_as_the_base(tmp_path: Path) -> None:
    given = GpuPlan(Path("data/base"), None, ())
    assert make_gpu_base(given, runs=tmp_path) == Path("data/base")
    with pytest.raises(FileNotFoundError, match="no recipe"):
        make_gpu_base(plan(), runs=tmp_path)


@pytest.mark.slow
def test_a_recipe_lies_where_the_notebooks_look(tmp_path: Path) -> None:
    recipe = BaseRecipe(
        vocabulary=600,
        tokenizer_characters=200_000,
        training_characters=200_000,
        context=64,
        steps=2,
        batch_size=2,
        micro_batch_size=1,
        warmup_steps=1,
        compile=False,
    )
    made = GpuPlan(tmp_path / "gpu-base", recipe, ())
    for _ in range(2):  # the second time nothing is trained
        assert (make_gpu_base(made, runs=tmp_path) / "model.safetensors").is_file()
    weights = [(made.folder / "model.safetensors").read_bytes()]
    hashed = base_hash(str(made.folder))
    (made.folder / "made_from.txt").unlink()
    assert base_hash(str(made.folder)) == hashed, "the mark changes no run that starts from the base"
    other = dataclasses.replace(made, recipe=dataclasses.replace(recipe, learning_rate=0.01))
    for recipe_of in (other, made):
        make_gpu_base(recipe_of, runs=tmp_path)
        weights.append((made.folder / "model.safetensors").read_bytes())
    assert weights[0] != weights[1] and weights[0] == weights[2], "another recipe, another base"
    (made.folder / "record.json").unlink()
    with pytest.raises(ValueError, match="no recipe made"):
        make_gpu_base(other, runs=tmp_path)
    assert (made.folder / "model.safetensors").read_bytes() == weights[2]
