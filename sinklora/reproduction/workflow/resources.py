"""What a job asks a machine for: memory and time of a fine-tune by `estimate`, without a device."""

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sinklora.records.files import contents_hash
from sinklora.records.runs import remember
from sinklora.reproduction.report.experiments import ON_GPU
from sinklora.train.spec import TrainSpec

# TFLOP/s that a training step sustains, unless somebody says otherwise: a third of what an A100 can do in
# bfloat16; two cores of a server.
SUSTAINED = {"cuda": 100.0, "cpu": 0.05}

BOUNDS = ("full", "sf")  # patterns whose steps are estimated: any other takes no more than the larger of them

MARGIN = 2.0  # of the time asked for: a job that reaches its limit is killed

STARTING = 15  # minutes for reading a model and tokenizing a corpus

PROCESS_MB = 4_000  # of libraries, the corpus, and what a step does not hold in tensors

# A limit, no estimate: what a notebook reads, and what it decides to train, is not known before.
NOTEBOOK_HOURS = {"cpu": 12.0, "cuda": 24.0}


@dataclass(frozen=True)
class Resources:
    """`gpus`; `gpu_gib` that one of them needs; `memory_mb` of the machine; `minutes` at most; `hours` as
    estimated (0: not estimated).
    """

    gpus: int
    gpu_gib: float
    memory_mb: int
    minutes: int
    hours: float = 0.0


@dataclass(frozen=True)
class Machine:
    """Where jobs run: `device`, the TFLOP/s that it sustains in training, and a notebook's limit in hours (0
    stands for NOTEBOOK_HOURS).
    """

    device: str
    tflops: float
    notebook_hours: float = 0.0

    @classmethod
    def of_profile(cls, profile: str, tflops: float = 0.0, notebook_hours: float = 0.0) -> "Machine":
        """What a profile is made for: those ON_GPU a GPU. 0 TFLOP/s stand for SUSTAINED."""
        device = "cuda" if profile in ON_GPU else "cpu"
        return cls(device, tflops or SUSTAINED[device], notebook_hours)


def of_fine_tune(spec: TrainSpec, machine: Machine, shapes: Mapping[str, str], runs: Path) -> Resources:
    """Memory and time of a fine-tune. `shapes`: of bases that are not on this machine yet, by their names.

    Estimates are kept under `runs`. Raises ValueError for a base whose shape nobody knows.
    """
    costs = [_step_cost(_step(spec, pattern, machine, shapes), runs) for pattern in BOUNDS]
    peak = max(cost["peak_bytes"] for cost in costs)
    flops = max(cost["needed_flops"] for cost in costs)
    hours = flops * spec.batch_size / spec.micro_batch_size * spec.steps / (machine.tflops * 1e12) / 3600
    minutes = math.ceil(STARTING + MARGIN * 60 * hours)
    weights = math.ceil(4 * costs[0]["parameters"] / 2**20)
    if machine.device == "cuda":
        return Resources(1, round(peak / 2**30, 1), PROCESS_MB + weights, minutes, hours)
    return Resources(0, 0.0, PROCESS_MB + math.ceil(peak / 2**20), minutes, hours)


def of_notebook(
    fine_tunes: Iterable[Resources],
    parameters: Mapping[str, Any],
    machine: Machine,
    models: Iterable[str] = (),
) -> Resources:
    """Memory of its largest fine-tune, of the largest of the `models` that it reads, or the limit that it has
    itself; a limit of time, no estimate. `models`: names of shapes, or what `shape_config` knows.
    """
    needed, weights_mb = list(fine_tunes), max(map(_weights_mb, models), default=0)
    memory_mb = max([PROCESS_MB + weights_mb, *(one.memory_mb for one in needed)])
    minutes = math.ceil(60 * (machine.notebook_hours or NOTEBOOK_HOURS[machine.device]))
    if machine.device == "cpu":
        return Resources(0, 0.0, memory_mb, minutes)
    limits = [float(parameters.get(name, 0)) for name in ("memory_gib", "limit_gib")]
    half_gib = weights_mb / 2 / 1024  # on the card, in bfloat16; caches come on top
    gpu_gib = max([one.gpu_gib for one in needed] + [*limits, round(half_gib, 1)])
    return Resources(1, gpu_gib, memory_mb, minutes)


def _weights_mb(model: str) -> int:
    """Weights of a model in float32, as they are read; 0 where its shape is not known before it is there."""
    from sinklora.hf.model_shapes import HUB_SHAPES, random_model
    from sinklora.pretrained.fetch import FetchError

    try:
        empty = random_model(HUB_SHAPES.get(model, model), 1, device="meta")
    except (ValueError, FetchError):
        return 0
    return math.ceil(4 * sum(weight.numel() for weight in empty.parameters()) / 2**20)


def _step(spec: TrainSpec, pattern: str, machine: Machine, shapes: Mapping[str, str]) -> Any:
    from sinklora.reproduction.extension.timed_steps import step_of

    return step_of(spec, pattern, device=machine.device, shapes=shapes)


def _step_cost(step: Any, runs: Path) -> dict[str, Any]:
    from sinklora.evaluate.training_step import PACKAGE, STEP_SOURCES

    sources = contents_hash(*(PACKAGE / part for part in (*STEP_SOURCES, "evaluate/step_estimate.py")))
    key = {**step.key(), "estimated_by": {"torch": version("torch"), "sources": sources}}
    cost: dict[str, Any] = remember(key, partial(_estimated, step), runs=runs, prefix="estimate", name="step")
    return cost


def _estimated(step: Any) -> dict[str, int]:
    from sinklora.evaluate.step_estimate import estimate
    from sinklora.hf.model_shapes import random_model

    with warnings.catch_warnings():  # transformers on names that it is about to change
        warnings.simplefilter("ignore", FutureWarning)
        cost = estimate(step)
    count = sum(p.numel() for p in random_model(step.shape, step.context, device="meta").parameters())
    return {"peak_bytes": cost.peak_bytes, "needed_flops": cost.needed_flops, "parameters": count}
