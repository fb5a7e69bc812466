"""`workflow run`: what is refused before anything is planned, and what is left to the jobs."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sinklora.cli import application
from sinklora.reproduction.places import Places
from sinklora.reproduction.workflow.launch import only_workflow, snakemake


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
    monkeypatch.setattr(f"{workflow}.launch.lost_marks", lambda *_: {})
    monkeypatch.setattr(f"{workflow}.launch.snakemake", lambda *_, **__: calls.append("jobs"))
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(application, ["workflow", "run", "--profile", profile, *folders, *others])
    assert (calls == ["jobs"]) is begun
    assert (done.exit_code == 0) is begun and ("not available" in done.stderr) is not begun, done.output


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `workflow run` hands to Snakemake; the tests' own process keeps its environment and folder."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.chdir(Path.cwd())
    plan = SimpleNamespace(write=lambda path, *_: given.update(plan=path))
    workflow = "sinklora.reproduction.workflow"
    monkeypatch.setattr(f"{workflow}.commands.planned", lambda *_, **__: plan)
    monkeypatch.setattr(f"{workflow}.launch.snakemake", lambda *_, options: given.update(options=options))
    return given


def test_what_only_lists_waits_for_nobody_and_changes_nothing(
    handed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, lost = tmp_path / "workflow" / "quick", tmp_path / "lost.done"
    lost.touch()
    monkeypatch.setattr("sinklora.reproduction.workflow.launch.lost_marks", lambda *_: {"lost": lost})
    command = ["workflow", "run", "--results", str(tmp_path / "results"), "--runs", str(tmp_path)]
    with only_workflow(folder):
        done = CliRunner().invoke(application, [*command, "--dry-run", "--no-wait"])
    assert done.exit_code == 0 and "lost: what it made is gone" in done.stdout, done.output
    assert handed["options"] == ["--dry-run"] and handed["plan"].parent != folder and lost.is_file()
    assert CliRunner().invoke(application, command).exit_code == 0
    assert handed["plan"] == folder / "plan.json" and not lost.is_file()


def test_a_partition_is_a_name_whatever_it_spells(
    handed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake evaluates default resources: `all` is a function of Python's."""
    monkeypatch.setattr("sinklora.reproduction.workflow.launch.lost_marks", lambda *_: {})
    named = ["--on", "slurm", "--partition", "all", "--account", "my-group"]
    folders = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path)]
    assert CliRunner().invoke(application, ["workflow", "run", *folders, *named]).exit_code == 0
    assert [eval(given.partition("=")[2]) for given in handed["options"] if "slurm" in given] == [
        "all",
        "my-group",
    ]


@pytest.mark.parametrize(
    ("gone", "on", "words"),
    [
        (
            "importlib.util.find_spec",
            "local",
            r"Snakemake is not installed; pip install 'sinklora",
        ),
        ("shutil.which", "slurm", "on='slurm': there is no sbatch here"),
    ],
)
def test_what_jobs_need_and_is_not_there_is_named(
    gone: str, on: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gone, lambda name: None)
    places = Places(Path.cwd(), tmp_path / "results", tmp_path / "runs")
    with pytest.raises((ImportError, FileNotFoundError), match=words):
        snakemake(places, tmp_path, on, tmp_path / "plan.json")
