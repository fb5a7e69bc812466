"""Workflows for real, on a tiny checkout: what is run, what is not run again, what survives."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workflow_checkout import ended, make_workflow_checkout, outcomes, start

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after its workflow."""
    root = make_workflow_checkout(tmp_path_factory.mktemp("undisturbed") / "Aus checkung ü")
    code, output = ended(start(root))
    assert code == 0, output
    return root


def fresh(undisturbed: Path, root: Path) -> Path:
    """The same checkout before its workflow."""
    return shutil.copytree(undisturbed, root, ignore=shutil.ignore_patterns("runs", "results", "cache"))


def times(root: Path) -> dict[str, int]:
    """When each finished run was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("runs/*/finished.json")}


def test_a_second_time_nothing_is_run(undisturbed: Path) -> None:
    made, before = outcomes(undisturbed), times(undisturbed)
    assert len([name for name in made if name.endswith(".safetensors")]) == 2
    code, output = ended(start(undisturbed))
    assert code == 0 and "Nothing to be done" in output
    assert outcomes(undisturbed) == made and times(undisturbed) == before


def test_a_run_that_is_gone_is_made_again_and_no_other(undisturbed: Path, tmp_path: Path) -> None:
    root = shutil.copytree(undisturbed, tmp_path / "checkout")
    for plan in root.glob("runs/workflow/smoke/fine_tunes/*.done"):  # they name runs by their places
        plan.write_text(plan.read_text().replace(str(undisturbed), str(root)))
    before = times(root)
    [lost] = root.glob("runs/sf-64-*")
    shutil.rmtree(lost)
    code, output = ended(start(root))
    assert code == 0 and "what it made is gone; it is made again" in output, output
    changed = {name for name, at in times(root).items() if before.get(name) != at}
    assert changed == {lost.name} and outcomes(root) == outcomes(undisturbed)


def test_finished_runs_from_before_are_found(undisturbed: Path, tmp_path: Path) -> None:
    root = fresh(undisturbed, tmp_path / "checkout")
    shutil.copytree(undisturbed / "runs", root / "runs", ignore=shutil.ignore_patterns("workflow"))
    before = times(root)
    code, output = ended(start(root))
    assert code == 0, output
    assert times(root) == before and outcomes(root) == outcomes(undisturbed)


# What is there at the earliest when a workflow is killed; the last comes before its notebook has ended.
PLACES = {
    "planned": "runs/workflow/smoke/plan.json",
    "training": "runs/*/checkpoints/checkpoint-*/complete.json",
    "one run finished": "runs/*-64-*/finished.json",
    "notebook begun": "runs/workflow/smoke/fine_tunes/*full*.done",
    "table written": "results/smoke/tables/table6.csv",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_killed_in_the_middle_it_goes_on(undisturbed: Path, tmp_path: Path, place: str) -> None:
    root = fresh(undisturbed, tmp_path / "checkout")
    process = start(root)
    while not list(root.glob(place)) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    before = times(root)
    code, output = ended(start(root))
    assert code == 0, output
    assert outcomes(root) == outcomes(undisturbed), "the same bytes"
    after = times(root)
    assert {name: after[name] for name in before} == before, "nothing is run twice"


def test_two_at_once_in_one_folder(undisturbed: Path, tmp_path: Path) -> None:
    root = fresh(undisturbed, tmp_path / "checkout")
    first, second = start(root), start(root)
    ends = [ended(first), ended(second)]
    assert [code for code, _ in ends] == [0, 0], ends
    assert sum("waiting: another process runs the workflow in " in output for _, output in ends) == 1
    assert sum("Nothing to be done" in output for _, output in ends) == 1
    assert outcomes(root) == outcomes(undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_is_told_and_with_room_it_goes_on(
    undisturbed: Path, tmp_path: Path, small_disk: Path
) -> None:
    root = fresh(undisturbed, tmp_path / "checkout")
    (small_disk / "filling").write_bytes(b"x" * (360 << 10))
    code, output = ended(start(root, "--runs", str(small_disk)))
    assert code == 1 and "No space left on device" in output, output
    assert not list(small_disk.glob("*-64-*/finished.json")), "what did not fit is not called finished"
    (small_disk / "filling").unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, output = ended(start(root, "--runs", str(small_disk)))
    assert code == 0, output
    ours, theirs = outcomes(root), outcomes(undisturbed)
    assert ours == {name: theirs[name] for name in ours} and ours
