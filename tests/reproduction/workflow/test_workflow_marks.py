"""What a workflow takes for done: another place, another recipe and lost work are done anew. No job works."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sinklora.reproduction.base_model.study import BaseRecipe
from sinklora.reproduction.places import Places
from sinklora.reproduction.workflow.launch import folder_of, forget_lost_marks, snakemake
from sinklora.reproduction.workflow.plan import NotebookJob, WorkflowPlan
from sinklora.reproduction.workflow.resources import Resources

ROOT = Path(__file__).resolve().parents[3]

BASE = "runs/gpu-base"


def places_in(folder: Path, results: str = "results") -> Places:
    return Places(ROOT, folder / results, folder / "runs")


def planned(bases: Mapping[str, BaseRecipe]) -> WorkflowPlan:
    """A notebook of the profile gpu."""
    job = NotebookJob({"profile": "gpu"}, (), BASE, Resources(0, 0.0, 100, 1))
    return WorkflowPlan("gpu", {}, {}, {"20_new": job}, bases)


def jobs_run(plan: WorkflowPlan, places: Places, capfd: pytest.CaptureFixture[str]) -> set[str]:
    """The rules whose jobs were left; the interpreter is a program that does nothing."""
    folder = folder_of(places, plan.profile)
    plan.write(folder / "plan.json", places, "true")
    capfd.readouterr()
    snakemake(places, folder, "local", folder / "plan.json")
    told = "".join(capfd.readouterr())
    names = set(re.findall(r"^(?:local)?rule (\w+):$", told, re.MULTILINE))
    assert names or "Nothing to be done" in told, told
    return names - {"everything"}


@pytest.mark.cluster
def test_other_results_and_another_base_are_made(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = BaseRecipe()
    plan, places = planned({BASE: recipe}), places_in(tmp_path)
    assert jobs_run(plan, places, capfd) == {"base", "notebook", "report"}
    assert jobs_run(plan, places, capfd) == set()
    elsewhere = places_in(tmp_path, "others")
    assert jobs_run(plan, elsewhere, capfd) == {"notebook", "report"}
    other = planned({BASE: replace(recipe, learning_rate=0.01)})
    assert jobs_run(other, elsewhere, capfd) == {"base", "notebook", "report"}
    [(name, job)] = other.notebooks.items()
    reads = replace(other, notebooks={name: replace(job, reads="other texts")})
    assert jobs_run(reads, elsewhere, capfd) == {"notebook", "report"}


def test_code_is_known_by_what_its_files_hold_and_by_its_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "sources"
    (sources / "notebooks").mkdir(parents=True)
    places = replace(places_in(tmp_path), sources=sources)

    def code_after(text: str) -> str:
        (sources / "notebooks" / "20_new.ipynb").write_text(text)
        planned({}).write(tmp_path / "plan.json", places, "true")
        return str(json.loads((tmp_path / "plan.json").read_text())["code"])

    first, second, third = map(code_after, ("a", "b", "a"))
    assert first != second and first == third
    monkeypatch.setattr("sinklora.reproduction.workflow.reads.version", lambda name: "another")
    assert code_after("a") != first


def test_marks_of_what_is_gone_are_forgotten(tmp_path: Path) -> None:
    places, plan = places_in(tmp_path), planned({str(tmp_path / "base"): BaseRecipe()})
    folder = folder_of(places, "gpu")
    made = {
        "fine_tunes/tuned.done": places.runs / "tuned" / "finished.json",
        "notebooks/20_new.done": places.results / "gpu" / "notebooks" / "20_new.ipynb",
        "report.done": places.results / "gpu" / "report.html",
        "base.done": tmp_path / "base" / "config.json",
    }
    for mark, file in made.items():
        for path in (folder / mark, file):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (folder / "fine_tunes" / "tuned.done").write_text(json.dumps({"run": str(places.runs / "tuned")}))
    diverged = folder / "fine_tunes" / "other.done"
    diverged.write_text(json.dumps({"diverged": "learning_rate=1e30: ..."}))
    assert forget_lost_marks(places, plan) == []
    for mark, file in made.items():
        file.unlink()
        assert forget_lost_marks(places, plan) == [Path(mark).stem] and not (folder / mark).exists()
    assert list(folder.rglob("*.done")) == [diverged], "a training that diverged is not tried again"


CANCELS = """
import signal, sys, time
def cancel(*_):
    time.sleep(0.5)
    open(sys.argv[1], "w").write("cancelled")
    sys.exit(1)
signal.signal(signal.SIGINT, cancel)
print("ready", flush=True)
time.sleep(60)
"""


def test_who_is_told_to_end_waits_until_jobs_are_cancelled(tmp_path: Path) -> None:
    """They would go on beside those of the next start."""
    mark = tmp_path / "mark"
    program = (
        "import signal, sys\n"
        "from sinklora.reproduction.commands import stop_when_told\n"
        "from sinklora.reproduction.workflow.launch import exit_status\n"
        f"stop_when_told()\nexit_status([sys.executable, '-c', {CANCELS!r}, {str(mark)!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert mark.read_text() == "cancelled"


def test_what_it_was_started_to_ignore_it_goes_on_ignoring() -> None:
    program = (
        "import os, signal\n"
        "from sinklora.reproduction.commands import stop_when_told\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does\n"
        "stop_when_told()\nos.kill(os.getpid(), signal.SIGHUP)\nprint('goes on')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "goes on\n"), done.stderr
