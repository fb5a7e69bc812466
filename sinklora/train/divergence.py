"""A training that diverges stops where it does, so that no run finishes with weights that are no numbers."""

import math
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from sinklora.train.settings import TrainingSettings


class DivergedError(ArithmeticError):
    """A training came to a loss or a gradient that is no finite number; `spec`: what was trained."""

    def __init__(self, spec: TrainingSettings, place: str) -> None:
        super().__init__(
            f"learning_rate={spec.learning_rate:g}: the training with pattern={spec.pattern!r} diverged "
            f"{place}; take a smaller rate"
        )
        self.spec = spec


class StopWhereDiverged(TrainerCallback):
    """Raises DivergedError at the first step whose loss or gradient is no finite number.

    Before its checkpoint is written, and in all processes alike: they log the same mean.
    """

    def __init__(self, spec: TrainingSettings) -> None:
        self.spec = spec

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **given: Any) -> None:
        for name in ("loss", "grad_norm"):
            value = given["logs"].get(name)
            if value is not None and not math.isfinite(value):
                place = f"at step {state.global_step} of {state.max_steps} ({name}={value})"
                raise DivergedError(self.spec, place)
