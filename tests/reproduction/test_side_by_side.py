"""Tasks done by several processes: in order, each once, none lost where one fails or time is up."""

import time
from functools import partial
from pathlib import Path

import pytest

from sinklora.reproduction.side_by_side import run_side_by_side


def leave_mark(folder: Path, name: str, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    with (folder / "order.txt").open("a", encoding="utf-8") as file:
        file.write(f"{name}\n")


def fail() -> None:
    raise ValueError("no such book")


def test_every_task_is_done_once_and_a_failed_one_told(tmp_path: Path) -> None:
    told: dict[int, str] = {}
    tasks = [partial(leave_mark, tmp_path, "first"), fail, partial(leave_mark, tmp_path, "last")]
    assert run_side_by_side(tasks, workers=2, seconds=60, say=told.__setitem__) == [True, False, True]
    assert sorted((tmp_path / "order.txt").read_text(encoding="utf-8").split()) == ["first", "last"]
    assert sorted(told) == [0, 1, 2]
    assert told[1].startswith("failed after") and "no such book" in told[1]


def test_one_worker_keeps_the_order(tmp_path: Path) -> None:
    tasks = [partial(leave_mark, tmp_path, str(place)) for place in range(4)]
    assert run_side_by_side(tasks, workers=1, seconds=60, say=lambda place, what: None) == [True] * 4
    assert (tmp_path / "order.txt").read_text(encoding="utf-8").split() == list("0123")


def test_nothing_is_begun_after_the_time(tmp_path: Path) -> None:
    tasks = [partial(leave_mark, tmp_path, "never")]
    assert run_side_by_side(tasks, workers=1, seconds=0, say=lambda place, what: None) == [False]
    assert not list(tmp_path.iterdir())


def test_no_worker_is_refused() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        run_side_by_side([fail], workers=0, seconds=1, say=lambda place, what: None)
