"""The plan for a GPU: read and checked, step by step, stopped in time, taken up again."""

import dataclasses
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from sinklora.reproduction.base_model.study import BaseRecipe
from sinklora.reproduction.gpu import GpuPlan, Step, make_gpu_base, run_steps
from sinklora.train.spec import base_hash

COMMITTED = GpuPlan.read(Path("configs/gpu.yaml"))


def plan(*steps: Step) -> GpuPlan:
    return GpuPlan(Path("none"), None, steps)


def test_the_committed_plan_names_what_there_is() -> None:
    names = [step.name for step in COMMITTED.steps]
    assert names[:5] == ["tests", "attention", "kv_cache", "training", "efficiency"]
    assert names.index("base") < names.index("perplexity")
    assert COMMITTED.recipe is not None and COMMITTED.recipe.shape == "llama-100m"
    for step in COMMITTED.steps:
        first = step.run[0]
        assert first == "-m" or Path(first).is_file(), step
        if first != "-m":
            assert step.run[step.run.index("--device") + 1] == "cuda", step


def test_without_a_gpu_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    marker, runs = tmp_path / "marker", tmp_path / "runs"
    step = Step("one", ("-c", f"open({str(marker)!r}, 'w')"))
    with pytest.raises(RuntimeError, match="is not available"):
        run_steps(plan(step), runs=runs, minutes=1)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for arguments in (
        ["gpu", "--runs", str(runs)],
        ["gpu", "--base", "--runs", str(runs)],
        ["reproduce", "--profile", "gpu", "--only", "02"],
    ):
        command = [sys.executable, "-m", "sinklora", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "not available" in done.stderr, done.stderr
    assert not marker.exists() and not runs.exists()


def test_notebooks_of_the_plan_have_a_gpu_profile_that_starts_from_its_base() -> None:
    experiments = {
        e["notebook"][:2]: e for e in yaml.safe_load(Path("notebooks/experiments.yaml").read_text())
    }
    run = {step.run[-1] for step in COMMITTED.steps if "--only" in step.run}
    assert run == {number for number, entry in experiments.items() if "gpu" in entry["parameters"]}
    assert run == {"02", "03", "04", "05", "06", "07", "08"}
    for step in COMMITTED.steps:
        if "--only" in step.run:
            given = experiments[step.run[-1]]["parameters"]["gpu"]
            assert given.get("base", str(COMMITTED.folder)) == str(COMMITTED.folder)
            assert given["shape"] == "llama2-7b" if step.name == "efficiency" else "base" in given


def test_finished_steps_are_kept_failed_ones_run_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    good = Step("good", ("-c", f"open({str(marker)!r}, 'a').write('x'); print('done')"))
    bad = Step("bad", ("-c", "raise SystemExit('no luck')"))
    said: list[str] = []
    for _ in range(2):
        left = run_steps(plan(bad, good), runs=tmp_path, minutes=1, needs_gpu=False, say=said.append)
        assert left == ["bad"]
    assert marker.read_text() == "x", "a finished step runs once"
    assert any("no luck" in line for line in said) and "good: finished before" in said
    assert (
        run_steps(plan(bad, good), runs=tmp_path, minutes=1, only="good", needs_gpu=False, say=said.append)
        == []
    )


def test_the_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinklora.reproduction.gpu.LEAST_SECONDS", 0)
    slow, later = Step("slow", ("-c", "import time; time.sleep(60)")), Step("later", ("-c", "pass"))
    said: list[str] = []
    left = run_steps(plan(slow, later), runs=tmp_path, minutes=0.02, needs_gpu=False, say=said.append)
    assert left == ["slow", "later"] and "goes on the next time" in said[1]
    assert run_steps(plan(later), runs=tmp_path, minutes=1, needs_gpu=False, say=said.append) == []


@pytest.mark.parametrize("own_session", [False, True])
@pytest.mark.parametrize("ending", ["time.sleep(60)", "pass"])
def test_nothing_that_a_step_started_lives_on(
    own_session: bool, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinklora.reproduction.gpu.LEAST_SECONDS", 0)
    started = tmp_path / "started"
    code = (
        "import pathlib, subprocess, time; "
        f"child = subprocess.Popen(['sleep', '77'], start_new_session={own_session}); "
        f"pathlib.Path({str(started)!r}).write_text(str(child.pid)); {ending}"
    )
    run_steps(
        plan(Step("parent", ("-c", code))), runs=tmp_path, minutes=0.05, needs_gpu=False, say=lambda _: None
    )
    child = int(started.read_text())
    with suppress(psutil.NoSuchProcess):
        # Nobody may have asked for its status yet: then it is a zombie, which holds nothing.
        psutil.wait_procs([psutil.Process(child)], timeout=5)
        assert psutil.Process(child).status() == psutil.STATUS_ZOMBIE


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
    with pytest.raises(ValueError, match=words):
        GpuPlan.read(path)


def test_a_local_model_serves_as_the_base(tmp_path: Path) -> None:
    given = GpuPlan(Path("data/base"), None, ())
    assert make_gpu_base(given, runs=tmp_path) == Path("data/base")
    with pytest.raises(FileNotFoundError, match="no recipe"):
        make_gpu_base(plan(), runs=tmp_path)


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


def test_the_training_benchmark_writes_its_table(tmp_path: Path) -> None:
    sys.path.insert(0, "benchmarks")
    try:
        import training
    finally:
        sys.path.remove("benchmarks")
    methods = ["--methods", "LoRA+", "LoRA+, SF-Attn"]
    training.main(
        [
            "--contexts",
            "64",
            *methods,
            "--repeats",
            "1",
            "--out",
            str(tmp_path),
            "--runs",
            str(tmp_path / "runs"),
        ]
    )
    assert "ideal ratio (FLOPs)" in (tmp_path / "training.md").read_text(encoding="utf-8")
    assert {path.suffix for path in tmp_path.glob("training.*")} == {".md", ".csv", ".json"}
