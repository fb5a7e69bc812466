"""The same training launched twice, of two processes each: one launch trains, all of the other waits."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from several_processes import run_together
from tiny_training import make_place

pytestmark = pytest.mark.slow  # launches of two processes, which each load torch and transformers

SCRIPT = Path(__file__).with_name("launched_processes.py")


def launch(place: Path, name: str, *, fails: bool = False) -> str:
    (place / name).mkdir()
    return run_together(SCRIPT, 2, place / name, fails=fails)


@contextmanager
def held_by_a_launch(place: Path, pool: ThreadPoolExecutor) -> Iterator[Future[str]]:
    """A launch that is in the middle of the run until the context ends."""
    first = pool.submit(launch, place, "first")
    try:
        while not (place / "first/saved").exists():
            assert not first.done(), first.result()
            time.sleep(0.1)
        yield first
    finally:
        (place / "go").touch()


def runs_of(place: Path, name: str) -> list[str]:
    """What each process of a launch returned."""
    return [(place / name / f"run-{rank}").read_text() for rank in range(2)]


def test_all_processes_of_a_second_launch_wait_for_the_first_or_are_refused(tmp_path: Path) -> None:
    place = make_place(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        with held_by_a_launch(place, pool) as first:
            said = launch(place, "refused", fails=True)
            assert said.count("RunLockedError: process") == 2, said
            second = pool.submit(launch, place, "second")
            told = place / "second/said-0"
            while not (told.exists() and "waiting: process" in told.read_text()):
                assert not second.done(), second.result()
                time.sleep(0.1)
        assert first.result() == second.result() == ""
    launch(place, "third")
    [finished] = place.glob("runs/*/finished.json")
    expected = 2 * [str(finished.parent)]
    assert [runs_of(place, name) for name in ("first", "second", "third")] == 3 * [expected]
    assert not (place / "second/saved").exists()  # what the first one trained was not trained again
    assert "waiting:" not in (place / "second/said-1").read_text() + (place / "third/said-0").read_text()
