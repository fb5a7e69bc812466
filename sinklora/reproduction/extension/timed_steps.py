"""What a training step of the study takes on this machine: seconds and peak memory, beside pairs seen."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from sinklora.attention.patterns import find_pattern
from sinklora.evaluate.step_spec import StepCost, StepSpec
from sinklora.evaluate.training_step import compared_costs
from sinklora.hf.device import default_device
from sinklora.hf.model_shapes import HUB_SHAPES
from sinklora.train.spec import TrainSpec


def step_of(
    spec: TrainSpec, pattern: str, *, device: str | None = None, shapes: Mapping[str, str] | None = None
) -> StepSpec:
    """A step as training takes it on a device (None: this machine's), with a pattern.

    `shapes`: of bases that are not on this machine yet, by their names. Raises ValueError for a base on the
    hub whose shape nobody knows.
    """
    half = spec.frozen_dtype == "bfloat16"
    return StepSpec(
        shape={**HUB_SHAPES, **(shapes or {})}.get(spec.base, spec.base),
        context=spec.context,
        pattern=_with_windows_of(spec, pattern),
        method=spec.method,
        batch=spec.micro_batch_size,
        checkpointing=spec.gradient_checkpointing,
        loss_chunk=spec.loss_chunk,
        device=device or default_device(),
        fused=half,
        bf16=spec.bf16,
        half_base=half or spec.method == "full" or not spec.bf16,
    )


def _with_windows_of(spec: TrainSpec, pattern: str) -> str:
    """The pattern's name, with the windows of the training where its own are others."""
    trained = dataclasses.replace(spec, pattern=pattern).pattern_at(0, 1)
    if trained == find_pattern(pattern):
        return pattern
    name, _, fields = pattern.removesuffix(")").partition("(")
    return f"{name}({fields}{', ' if fields else ''}group_size={trained.group_size})"


def step_costs(
    spec: TrainSpec, patterns: Sequence[str], *, runs: Path, used: list[Path] | None = None
) -> dict[str, StepCost]:
    """Cost of a step with each pattern (`compared_costs`). Their runs are added to `used`."""
    steps = [step_of(spec, pattern) for pattern in patterns]
    return dict(zip(patterns, compared_costs(steps, runs=runs, used=used), strict=True))
