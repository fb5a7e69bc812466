"""What a training step takes: seconds and peak memory, measured in processes of its own (Fig. 1)."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sinklora.evaluate.memory import (
    KEEP_MEMORY,
    RETURN_MEMORY,
    reset_resident_peak,
    resident_bytes,
    resident_peak_bytes,
)
from sinklora.evaluate.own_process import in_own_process
from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepCost, StepSpec, training_model, training_step
from sinklora.evaluate.timing import in_rounds, timed
from sinklora.records.files import contents_hash
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import remember

# Of a CUDA device: its driver, this process's libraries and the context of the one that started it hold less.
IDLE_BYTES = 3 * 2**30

PACKAGE = Path(__file__).parents[1]

# What a step runs of the package, but for what checks arguments and finds a model's folder.
STEP_SOURCES = (
    "attention",
    "cache/layer.py",
    "hf",
    "lora",
    "operators",
    "train",
    "evaluate/memory.py",
    "evaluate/own_process.py",
    "evaluate/step_spec.py",
    "evaluate/timing.py",
    "evaluate/training_step.py",
)

RETRY_SECONDS = 60.0  # until a process that is ending has given back what it holds of a device


def measure(spec: StepSpec, repeats: int = 3) -> StepCost:
    """Time and peak memory of real steps in this process, which should be a fresh one.

    The first step is not timed; the peak is over all. Without enough device memory both are None. On the CPU
    the peak is of resident memory, above what the process holds after the same step was taken once and freed:
    libraries and compiled kernels, some 50 MB more than an idle process holds.
    """
    cuda = spec.device == "cuda"
    held_before = _held_by_others() if cuda else 0
    if not cuda:
        step = training_step(spec, training_model(spec, spec.device))
        step()
        del step
        gc.collect()
        before = resident_bytes()
        reset_resident_peak()
    try:
        step = training_step(spec, training_model(spec, spec.device))
        step()
        seconds = [timed(step, spec.device).wall for _ in range(repeats)]
    except torch.OutOfMemoryError:
        return StepCost(None, None, certain=max(held_before, _held_by_others()) <= IDLE_BYTES)
    peak = torch.cuda.max_memory_allocated() if cuda else resident_peak_bytes() - before
    return StepCost(statistics.median(seconds), peak)


def _held_by_others() -> int:
    """Bytes of the CUDA device that neither are free nor belong to this process's tensors."""
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def _device_bytes() -> int:
    return torch.cuda.get_device_properties(0).total_memory


def measured(
    spec: StepSpec,
    *,
    runs: Path,
    repeats: int = 3,
    time_it: bool = True,
    used: list[Path] | None = None,
) -> StepCost:
    """`measure` in a process of its own, kept in a run directory for this machine, these versions and these
    sources, which is added to `used`: what other code took says nothing of this one.

    On the CPU memory and time are measured in two processes, since the C library's settings for one spoil the
    other; without `time_it` only the first (its seconds are then None).

    What did not fit a CUDA device that others used, but might have, is tried once more a minute later and
    never kept: it may fit when they are gone. Raises RuntimeError where they still hold some of it.
    """
    known = current_provenance()
    key = {"step": spec.key(), "repeats": repeats, "time_it": time_it, "machine": _machine(known)}

    def compute() -> dict[str, Any]:
        if spec.device == "cuda":
            cost = _on_cuda(spec, repeats)
        else:
            peak = _in_own_process(spec, 1, RETURN_MEMORY).peak_bytes
            seconds = _in_own_process(spec, repeats, KEEP_MEMORY).seconds if time_it else None
            cost = StepCost(seconds, peak)
        return {"seconds": cost.seconds, "peak_bytes": cost.peak_bytes, "provenance": known}

    kept = remember(key, compute, runs=runs, prefix="step", name="cost", used=used)
    return StepCost(kept["seconds"], kept["peak_bytes"])


def _machine(known: dict[str, Any]) -> dict[str, Any]:
    """What decides what a step takes, besides the step."""
    versions = {name: known["versions"][name] for name in ("torch", "transformers", "peft")}
    sources = contents_hash(*(PACKAGE / part for part in STEP_SOURCES))
    return {
        "versions": versions,
        "hardware": known["hardware"],
        "threads": known["threads"],
        "sources": sources,
    }


def measured_in_turn(
    specs: Sequence[StepSpec], *, runs: Path, rounds: int = 9, used: list[Path] | None = None
) -> list[list[float]]:
    """Seconds of a step of each spec, round by round: `in_turn` in a process of its own, kept as `measured`
    keeps its costs.

    For what is compared: a load that comes and goes slows all steps of a round alike, and the median of the
    rounds' ratios stays. All models are in memory at once. Raises RuntimeError where it does not suffice.
    """
    known = current_provenance()
    key = {"in_turn": [spec.key() for spec in specs], "rounds": rounds, "machine": _machine(known)}

    def compute() -> dict[str, Any]:
        seconds = in_own_process(
            "sinklora.evaluate.training_step:in_turn_as_json",
            [asdict(spec) for spec in specs],
            rounds,
            what=f"steps in turn, {', '.join(spec.pattern for spec in specs)}",
            environment=KEEP_MEMORY,
        )
        return {"seconds": seconds, "provenance": known}

    kept = remember(key, compute, runs=runs, prefix="step", name="rounds", used=used)
    seconds: list[list[float]] = kept["seconds"]
    return seconds


def compared_costs(
    specs: Sequence[StepSpec], *, runs: Path, rounds: int = 9, used: list[Path] | None = None
) -> list[StepCost]:
    """Cost of a step of each spec, to be compared: on the CPU `costs_in_turn`. On a GPU each is `measured`
    alone, for a step may need all of its memory.
    """
    if all(spec.device == "cpu" for spec in specs):
        return costs_in_turn(specs, runs=runs, rounds=rounds, used=used)
    return [measured(spec, runs=runs, repeats=rounds, used=used) for spec in specs]


def compared_rounds(
    specs: Sequence[StepSpec], *, runs: Path, rounds: int = 9, used: list[Path] | None = None
) -> list[list[float]]:
    """Seconds of a step of each spec, to be compared: on the CPU `measured_in_turn`. On a GPU the median of
    each alone, as one round. Raises RuntimeError for a step that does not fit.
    """
    if all(spec.device == "cpu" for spec in specs):
        return measured_in_turn(specs, runs=runs, rounds=rounds, used=used)
    seconds = []
    for spec, cost in zip(specs, compared_costs(specs, runs=runs, rounds=rounds, used=used), strict=True):
        if cost.seconds is None:
            raise RuntimeError(f"a step of {spec.pattern}, {spec.context} tokens, {spec.shape}: does not fit")
        seconds.append([cost.seconds])
    return seconds


def costs_in_turn(
    specs: Sequence[StepSpec], *, runs: Path, rounds: int = 9, used: list[Path] | None = None
) -> list[StepCost]:
    """Cost of a step of each spec: median seconds of `rounds`, all steps in turn (`measured_in_turn`), and
    peak memory, each step in a process of its own (`measured`). Their runs are added to `used`.
    """
    if not specs:
        return []
    seconds = measured_in_turn(specs, runs=runs, rounds=rounds, used=used)
    peaks = [measured(spec, runs=runs, repeats=1, time_it=False, used=used).peak_bytes for spec in specs]
    return [StepCost(statistics.median(own), peak) for own, peak in zip(seconds, peaks, strict=True)]


def in_turn(specs: Sequence[StepSpec], rounds: int) -> list[list[float]]:
    """Wall seconds of a step of each spec, [specs, rounds], each taken once in every round, in this process.

    A first round is not timed.
    """
    steps = {
        place: partial(timed, training_step(spec, training_model(spec, spec.device)), spec.device)
        for place, spec in enumerate(specs)
    }
    laps = in_rounds(steps, rounds=rounds, progress=False)
    return [[lap.wall for lap in laps[place]] for place in steps]


def in_turn_as_json(specs: Sequence[dict[str, Any]], rounds: int) -> list[list[float]]:
    """`in_turn` for a process of its own: the specs' fields."""
    return in_turn([StepSpec(**spec) for spec in specs], rounds)


def _on_cuda(spec: StepSpec, repeats: int) -> StepCost:
    _give_back_device_memory()
    cost = _in_own_process(spec, repeats, {})
    if cost.certain or estimate(spec).peak_bytes > _device_bytes():
        return cost
    time.sleep(RETRY_SECONDS)
    cost = _in_own_process(spec, repeats, {})
    if cost.certain:
        return cost
    raise RuntimeError(
        f"the step of {spec} ran out of memory while other processes held more than "
        f"{IDLE_BYTES / 2**30:.0f} GiB of the device; run it again when they are gone"
    )


def _give_back_device_memory() -> None:
    """What this process trained and read before leaves memory with it that the step's own process needs."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def measure_as_json(spec: dict[str, Any], repeats: int) -> dict[str, Any]:
    """`measure` for a process of its own: the spec's fields, and the cost's."""
    return asdict(measure(StepSpec(**spec), repeats))


def _in_own_process(spec: StepSpec, repeats: int, environment: dict[str, str]) -> StepCost:
    cost = in_own_process(
        "sinklora.evaluate.training_step:measure_as_json",
        asdict(spec),
        repeats,
        what=f"the step of {spec}",
        environment=environment,
    )
    return StepCost(**cost)
