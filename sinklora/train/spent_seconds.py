"""How long a run took in all: what lies behind a checkpoint counts where the run goes on from it."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from sinklora.records.files import atomic_write
from sinklora.train.trainer import saved_checkpoint

SECONDS = "seconds.json"  # in a checkpoint: those that the run took up to it


class SpentSeconds(TrainerCallback):
    """Writes into each checkpoint how many seconds the run took up to it, over all its starts.

    What was done after the last checkpoint before a kill was lost, and does not count. `checkpoint`: from
    where the run goes on, if from any.
    """

    def __init__(self, checkpoint: Path | None) -> None:
        self.before = 0.0 if checkpoint is None else _seconds_of(checkpoint)
        self.begun = time.perf_counter()

    def with_those_before(self, seconds: float) -> float | None:
        """All seconds of a run of which this start took so many; None where its checkpoint says none."""
        return None if self.before is None else self.before + seconds

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **unused: Any) -> None:
        self.begun = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **unused: Any) -> None:
        if state.is_world_process_zero:
            spent = self.with_those_before(time.perf_counter() - self.begun)
            atomic_write(saved_checkpoint(args, state) / SECONDS, json.dumps(spent))


def _seconds_of(checkpoint: Path) -> float | None:
    """What a checkpoint says; None of one that was written before they said so."""
    path = checkpoint / SECONDS
    spent: float | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return spent
