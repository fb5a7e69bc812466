"""What a training step of the study takes on this machine: seconds and peak memory, beside pairs seen."""

from collections.abc import Sequence
from pathlib import Path

from sinklora.evaluate.step_spec import StepCost, StepSpec
from sinklora.evaluate.training_step import costs_in_turn
from sinklora.train.spec import TrainSpec


def step_of(spec: TrainSpec, pattern: str) -> StepSpec:
    """A step as training takes it, with a pattern."""
    rows, bf16 = spec.micro_batch_size, spec.bf16
    return StepSpec(spec.base, spec.context, pattern, batch=rows, checkpointing=False, bf16=bf16)


def step_costs(
    spec: TrainSpec, patterns: Sequence[str], *, runs: Path, used: list[Path] | None = None
) -> dict[str, StepCost]:
    """Cost of a step with each pattern (`costs_in_turn`). Their runs are added to `used`."""
    steps = [step_of(spec, pattern) for pattern in patterns]
    return dict(zip(patterns, costs_in_turn(steps, runs=runs, used=used), strict=True))
