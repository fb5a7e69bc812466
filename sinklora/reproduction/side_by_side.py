"""Independent pieces of work by several processes: a small model does not fill a card, nor one core all."""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from queue import Empty
from typing import Any

from sinklora.records.checks import check_counts

Task = Callable[[], object]


def run_side_by_side(
    tasks: Sequence[Task],
    *,
    workers: int,
    seconds: float,
    say: Callable[[int, str], None],
) -> list[bool]:
    """Do the tasks in their order, `workers` at a time; returns which of them were done.

    `say` is told the place of each task that ended, and how long it took or why it failed. Each worker is a
    fresh process, so a task must be picklable, and its value is dropped: it keeps what it makes in run
    directories. After `seconds` nothing new is begun. A task that fails is told and left.
    Raises ValueError for less than one worker.
    """
    check_counts(workers=workers)
    context = multiprocessing.get_context("spawn")  # a fork would share a card that is in use already
    left: Any = context.Queue()
    done: Any = context.Queue()
    for place, task in enumerate(tasks):
        left.put((place, task))
    end = time.time() + seconds  # the wall's clock: a process of its own has another monotonic one
    processes = [context.Process(target=_work, args=(left, done, end), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    finished = [False] * len(tasks)
    while any(process.is_alive() for process in processes) or not done.empty():
        try:
            place, error, took = done.get(timeout=0.5)
        except Empty:
            continue
        finished[place] = not error
        say(place, f"failed after {took:.0f} s\n{error}" if error else f"{took:.0f} s")
    left.cancel_join_thread()
    return finished


def _work(left: Any, done: Any, end: float) -> None:
    while time.time() < end:
        try:
            place, task = left.get(timeout=2)
        except Empty:
            return
        started, error = time.monotonic(), ""
        try:
            task()
        except Exception:
            error = traceback.format_exc()
        done.put((place, error, time.monotonic() - started))
