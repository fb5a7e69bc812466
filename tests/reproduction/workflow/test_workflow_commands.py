"""`workflow run`: what is refused before anything is planned, and what is left to the jobs."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from sinklora.cli import application


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
    """On a machine without a GPU; the tests' own process keeps its signals, environment and folder."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.chdir(Path.cwd())
    calls: list[str] = []
    nothing = SimpleNamespace(write=lambda *_: None)
    workflow = "sinklora.reproduction.workflow"
    monkeypatch.setattr(f"{workflow}.commands.planned", lambda *_, **__: nothing)
    monkeypatch.setattr(f"{workflow}.launch.forget_lost_marks", lambda *_: [])
    monkeypatch.setattr(f"{workflow}.launch.snakemake", lambda *_, **__: calls.append("jobs"))
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(application, ["workflow", "run", "--profile", profile, *folders, *others])
    assert (calls == ["jobs"]) is begun
    assert (done.exit_code == 0) is begun and ("not available" in done.stderr) is not begun, done.output
