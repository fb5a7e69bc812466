"""A run that all processes of a launch work on: the first locks it and tells the others."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from sinklora.records.runs import RunDirectory, RunLockedError, State, may_wait, say_waiting
from sinklora.train.sharded_rows import process_count

ASK_AGAIN = 1.0  # seconds between two looks at a lock that others hold

PATIENCE = timedelta(minutes=30)  # for a process that does not come, as long as the Trainer's own


@dataclass(frozen=True)
class Found:
    """The state of a run, and who else holds it, if anybody does."""

    state: State
    holder: str | None = None


@contextmanager
def held_by_all(run: RunDirectory, wait: bool) -> Iterator[State]:
    """Hold an unfinished run for all processes that torchrun started; gives its state, to all the same.

    A finished one needs no lock, so that it may lie in a folder that nobody can write to. Where somebody else
    works in it, all wait and the first one says so: one that went on alone would wait for the others in the
    group, which gives up after a while. Without `wait` (or with SINKLORA_WAIT=0) all raise RunLockedError.
    """
    with ExitStack() as lock:
        if not _joined():
            yield _look(run, lock, wait).state
            return
        found = _told_by_first(run, lock)
        if found.holder is not None:
            if not may_wait(wait):
                raise RunLockedError(found.holder)
            if dist.get_rank() == 0:
                say_waiting(found.holder)
        while found.holder is not None:
            time.sleep(ASK_AGAIN)
            found = _told_by_first(run, lock)
        yield found.state


def _joined() -> bool:
    """Make one group of the processes of this launch; whether there are several.

    Made as the Trainer would make it, which then takes the one that is there. Its own way, by way of
    TrainingArguments, is no way here: with ZeRO-3 it would divide the model that is loaded next.
    """
    if process_count() == 1:
        return False
    on_cpu: dict[str, Any] = {} if torch.cuda.is_available() else {"cpu": True, "backend": "gloo"}
    PartialState(timeout=PATIENCE, **on_cpu)
    return dist.is_initialized()


def _look(run: RunDirectory, lock: ExitStack, wait: bool) -> Found:
    if run.state() != "finished":
        lock.enter_context(run.lock(wait))
    return Found(run.state())  # perhaps finished by the process that was waited for


def _told_by_first(run: RunDirectory, lock: ExitStack) -> Found:
    """What the first process finds. All ask together, again and again: no single wait outlasts PATIENCE."""
    told: list[Found | None] = [None]
    if dist.get_rank() == 0:
        try:
            told = [_look(run, lock, wait=False)]
        except RunLockedError as error:
            told = [Found("unfinished", error.holder)]
    dist.broadcast_object_list(told, src=0)
    [found] = told
    assert found is not None
    return found
