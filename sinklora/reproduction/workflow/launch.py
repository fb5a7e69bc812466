"""Starting Snakemake on a plan: one workflow at a time in a folder, whatever ended the one before."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sinklora.records.checks import check_choice
from sinklora.records.runs import WAITING
from sinklora.reproduction.places import Places
from sinklora.reproduction.workflow.plan import WorkflowPlan

WHERE = ("local", "slurm")


class WorkflowRunningError(RuntimeError):
    """Another process runs the workflow of this folder."""


class WorkflowFailedError(RuntimeError):
    """Jobs of a workflow failed."""

    exit_code = 1


def folder_of(places: Places, profile: str) -> Path:
    """Where a profile's marks, logs and plan lie."""
    return places.runs / "workflow" / profile


@contextmanager
def only_workflow(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold the folder's workflow for this process alone; the lock ends with the process, however it ends.

    Snakemake's own would stay behind a killed one. Raises WorkflowRunningError without `wait`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        if not wait:
            raise WorkflowRunningError(
                f"another process runs the workflow in {folder}; wait for it"
            ) from None
        print(f"{WAITING} another process runs the workflow in {folder} (--no-wait: do not)", file=sys.stderr)
        held = lock.acquire()
    with held:
        yield


def forget_lost_marks(places: Places, plan: WorkflowPlan) -> list[str]:
    """Remove the `lost_marks`; returns the names of their jobs."""
    names = lost_marks(places, plan)
    for mark in names.values():
        mark.unlink()
    return list(names)


def lost_marks(places: Places, plan: WorkflowPlan) -> dict[str, Path]:
    """The marks of jobs where what they made is no longer there, by the jobs' names.

    Paths of bases are relative to the working directory, which is the sources'.
    """
    made_by = _made(places, plan)
    return {mark.stem: mark for mark, made in made_by if mark.is_file() and not made.is_file()}


def _made(places: Places, plan: WorkflowPlan) -> Iterator[tuple[Path, Path]]:
    """Marks, each with a file that its job made last."""
    folder = folder_of(places, plan.profile)
    yield from ((folder / "base.done", Path(base) / "config.json") for base in plan.bases)
    for mark in sorted((folder / "fine_tunes").glob("*.done")):
        run = json.loads(mark.read_text(encoding="utf-8")).get("run")
        if run is not None:  # none of a training that diverged: its mark outlasts further starts
            yield mark, Path(run) / "finished.json"
    for mark in sorted((folder / "notebooks").glob("*.done")):
        yield mark, places.executed(plan.profile) / f"{mark.stem}.ipynb"
    yield folder / "report.done", places.results / plan.profile / "report.html"


CANCELLING = 120  # seconds that Snakemake has to cancel its jobs


def snakemake(places: Places, folder: Path, on: str, plan: Path, options: Sequence[str] = ()) -> None:
    """Run the plan's jobs that are left. Raises ImportError without Snakemake, WorkflowFailedError."""
    check_choice("on", on, WHERE)
    if importlib.util.find_spec("snakemake") is None:
        raise ImportError("Snakemake is not installed; pip install 'sinklora[workflow]'")
    workflow = places.sources / "workflow"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(workflow / "Snakefile")]
    command += ["--directory", str(folder), "--workflow-profile", str(workflow / "profiles" / on)]
    command += ["--runtime-source-cache-path", str(folder / ".sources"), "--nolock", *options]
    command += ["--slurm-status-command", _status_command()] if on == "slurm" else []
    command += ["--config", f"plan={plan}"]
    if exit_status(command):
        raise WorkflowFailedError(
            f"some jobs failed; their logs are in {folder / 'logs'}, what others finished is kept, and the "
            "same command goes on from there"
        )


def exit_status(command: Sequence[str]) -> int:
    """The exit status of Snakemake. Where this process is told to end, Snakemake cancels its jobs first: they
    would go on, and run beside those of the next start.
    """
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except (KeyboardInterrupt, SystemExit) as told:
        # A terminal's Ctrl-C reached it as well, and a second one would end it while it cancels.
        if not (isinstance(told, KeyboardInterrupt) and sys.stdin.isatty()):
            process.send_signal(signal.SIGINT)
        try:
            process.wait(CANCELLING)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def _status_command() -> str:
    """Where Slurm keeps no accounts, `sacct` is there and answers nothing."""
    if shutil.which("sbatch") is None:
        raise FileNotFoundError("on='slurm': there is no sbatch here; run it where jobs are submitted")
    asked = subprocess.run(["sacct", "--noheader", "--allocations"], check=False, capture_output=True)
    return "squeue" if asked.returncode else "sacct"
