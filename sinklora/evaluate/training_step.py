"""What a training step takes: seconds and peak memory, measured in processes of its own (Fig. 1)."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import asdict
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
from sinklora.evaluate.timing import timed
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import remember

# Of a CUDA device: its driver, this process's libraries and the context of the one that started it hold less.
IDLE_BYTES = 3 * 2**30

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
    """`measure` in a process of its own, kept in a run directory for this machine and these versions, which
    is added to `used`.

    On the CPU memory and time are measured in two processes, since the C library's settings for one spoil the
    other; without `time_it` only the first (its seconds are then None).

    What did not fit a CUDA device that others used, but might have, is tried once more a minute later and
    never kept: it may fit when they are gone. Raises RuntimeError where they still hold some of it.
    """
    known = current_provenance()
    machine = {name: known[name] for name in ("versions", "hardware", "threads")}
    machine["versions"] = {name: machine["versions"][name] for name in ("torch", "transformers", "peft")}
    key = {"step": spec.key(), "repeats": repeats, "time_it": time_it, "machine": machine}

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


def _on_cuda(spec: StepSpec, repeats: int) -> StepCost:
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
