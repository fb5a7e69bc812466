"""What each process of `test_several_processes.py` does: run after run, killed in the last."""

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

import sinklora.train.run
from sinklora.train.run import train
from sinklora.train.spec import TrainSpec
from sinklora.train.trainer import MarkComplete
from tiny_training import spec_in

STEPS = 20

# Nothing but sums in another order may tell several processes from one: float32, and no step too large.
COMMON: dict[str, Any] = {"steps": STEPS, "bf16": False, "save_every": 8, "group_size": 24}


def base_spec(place: Path) -> TrainSpec:
    return spec_in(place, **COMMON)


# By the folder that they stand in: what the runs are, and in how many processes a row is.
RUNS: dict[str, dict[str, Any]] = {
    "data": {},
    "sequence": {"sequence_parallel": 2},
    "sequence, documents": {"sequence_parallel": 2, "separate_documents": True, "context": 65, "steps": 3},
    "sequence, checkpointing": {
        "sequence_parallel": 2,
        "gradient_checkpointing": True,
        "base_dtype": "bfloat16",
        "bf16": True,
        "steps": 3,
    },
    "sequence, full": {"sequence_parallel": 2, "pattern": "full", "steps": 3},
}


class KilledAfterCheckpoint(MarkComplete):
    """A MarkComplete of which the second process does not survive the first checkpoint."""

    def on_save(self, *arguments: Any, **given: Any) -> None:
        super().on_save(*arguments, **given)
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)


def main(place: Path) -> None:
    spec = base_spec(place)

    def run(root: str, **changes: Any) -> None:
        spec_of = dataclasses.replace(spec, **changes)
        train(spec_of, runs=place / root, cache=place / "cache", progress=False)

    for root, changes in RUNS.items():
        run(root, **changes)
    sinklora.train.run.MarkComplete = KilledAfterCheckpoint  # type: ignore[misc]
    run("killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
