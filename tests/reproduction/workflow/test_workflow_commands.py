"""What is measured on a GPU is not made by a CPU: neither a whole workflow here, nor one of its jobs."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from sinklora.cli import application
from sinklora.reproduction.places import Places

NOT_HERE = ValueError("nothing is to be made here")


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU; the tests' own process keeps its signals, environment and folder."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.chdir(Path.cwd())


def plan_file(folder: Path, profile: str) -> Path:
    places = Places(Path.cwd(), folder / "results", folder / "runs")
    named = {name: str(path) for name, path in vars(places).items()}
    job = {"spec": {"steps": 1}, "parameters": {}}
    values = {"profile": profile, "places": named, "fine_tunes": {"one": job}, "notebooks": {"one": job}}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize("profile", ["gpu", "paper"])
@pytest.mark.parametrize("job", ["base", "fine-tune", "notebook"])
def test_no_job_of_a_gpus_profile_runs_without_one(
    job: str, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise NOT_HERE

    for made in ("gpu.make_gpu_base", "notebooks.execute"):
        monkeypatch.setattr(f"sinklora.reproduction.{made}", never)
    monkeypatch.setattr("sinklora.train.run.train", never)
    mark = ["--mark", str(tmp_path / "mark")] if job == "fine-tune" else []
    name = {"base": [], "fine-tune": ["one"], "notebook": ["02_perplexity"]}[job]
    arguments = ["workflow", job, *name, "--plan", str(plan_file(tmp_path, profile)), *mark]
    done = CliRunner().invoke(application, arguments)
    assert done.exit_code == 2 and "not available" in done.stderr, done.output
    assert not (tmp_path / "mark").exists() and not (tmp_path / "results").exists()


@pytest.mark.usefixtures("without_gpu")
@pytest.mark.parametrize(
    ("profile", "others", "begun"),
    [
        ("gpu", [], False),
        ("paper", [], False),
        ("quick", [], True),
        ("gpu", ["--on", "slurm"], True),  # the machine that submits has none; the jobs look for theirs
        ("gpu", ["--dry-run"], True),
    ],
)
def test_a_workflow_here_begins_only_where_its_jobs_can_run(
    profile: str, others: list[str], begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    nothing = SimpleNamespace(write=lambda *_: None)
    monkeypatch.setattr("sinklora.reproduction.workflow.commands.planned", lambda *_: nothing)
    monkeypatch.setattr(
        "sinklora.reproduction.workflow.launch.snakemake", lambda *_, **__: calls.append("jobs")
    )
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(application, ["workflow", "run", "--profile", profile, *folders, *others])
    assert (calls == ["jobs"]) is begun
    assert (done.exit_code == 0) is begun and ("not available" in done.stderr) is not begun, done.output
