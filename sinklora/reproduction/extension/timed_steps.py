"""What a training step of the study takes on this machine: seconds and peak memory, beside pairs seen."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from sinklora.evaluate.step_spec import StepCost, StepSpec
from sinklora.evaluate.training_step import measured, measured_in_turn
from sinklora.train.spec import TrainSpec


def step_of(spec: TrainSpec, pattern: str) -> StepSpec:
    """A step as training takes it, with a pattern."""
    rows, bf16 = spec.micro_batch_size, spec.bf16
    return StepSpec(spec.base, spec.context, pattern, batch=rows, checkpointing=False, bf16=bf16)


def step_costs(
    spec: TrainSpec, patterns: Sequence[str], *, runs: Path, used: list[Path] | None = None
) -> dict[str, StepCost]:
    """Cost of a step with each pattern: seconds, all patterns in turn (`measured_in_turn`), and peak memory,
    each in a process of its own (`measured`). Their runs are added to `used`.
    """
    steps = [step_of(spec, pattern) for pattern in patterns]
    if not steps:
        return {}
    seconds = measured_in_turn(steps, runs=runs, used=used)
    peaks = [measured(step, runs=runs, repeats=1, time_it=False, used=used).peak_bytes for step in steps]
    costs = zip(patterns, seconds, peaks, strict=True)
    return {pattern: StepCost(median(rounds), peak) for pattern, rounds, peak in costs}
