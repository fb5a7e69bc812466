"""Training steps compared over methods and context lengths: time, memory, FLOPs (Fig. 1)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from sinklora.attention.patterns import FULL, find_pattern
from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import EAGER, StepCost, StepSpec
from sinklora.evaluate.training_step import compared_costs
from sinklora.pretrained.loading import fast_dtype
from sinklora.records.checks import Count, Distinct, Positive, check_choice, check_fields
from sinklora.records.runs import run_records
from sinklora.train.pattern_schedules import PATTERN_SCHEDULES

BASELINE, SF, EAGER_STEP = "LoRA+", "LoRA+, SF-Attn", "LoRA+, all scores in memory"

STEPS: Mapping[str, Mapping[str, str]] = {
    "full fine-tuning": {"method": "full", "pattern": "full"},
    BASELINE: {"pattern": "full"},
    "LoRA+, S²-Attn": {"pattern": "s2"},
    SF: {"pattern": "sf"},
    EAGER_STEP: {"pattern": EAGER},
}

PAPER_RATIOS = {
    "seconds": "training time of full attention / SF-Attn",
    "peak_gib": "training memory of full attention / SF-Attn",
}
"""The rows of the paper's Figure 1."""


def computes_in_bfloat16(dtype: str, device: str) -> bool:
    """Whether steps compute in bfloat16. `dtype`: its name, or "fastest" for what the device multiplies
    faster. Raises ValueError for another.
    """
    check_choice("dtype", dtype, ("bfloat16", "float32", "fastest"))
    return fast_dtype(device) is torch.bfloat16 if dtype == "fastest" else dtype == "bfloat16"


def check_methods(methods: Sequence[str]) -> None:
    """ValueError unless all are names of `STEPS`, with those that everything is compared with among them."""
    unknown = [name for name in methods if name not in STEPS]
    missing = [name for name in (BASELINE, SF) if name not in methods]
    if unknown or missing:
        raise ValueError(f"methods: unknown {unknown}, missing {missing}; known are {', '.join(STEPS)}")


@dataclass(frozen=True)
class EfficiencyStudy:
    """What is measured: `step` gives shape, device and dtype; `limit_gib`: steps predicted to need more are
    left out; `schedules`: pattern schedules whose mean step is computed from the measured ones; `repeats`:
    timed steps, on the CPU those of all methods in turn.
    """

    step: StepSpec
    contexts: Distinct[Count]
    limit_gib: Positive
    methods: tuple[str, ...] = tuple(STEPS)
    schedules: tuple[str, ...] = ("sf_then_full",)
    repeats: Count = 3

    def __post_init__(self) -> None:
        check_fields(self)
        check_methods(self.methods)
        unknown = [name for name in self.schedules if name not in PATTERN_SCHEDULES]
        if unknown:
            raise ValueError(f"schedules: unknown {unknown}; known are {', '.join(PATTERN_SCHEDULES)}")


def compare(study: EfficiencyStudy, *, runs: Path, progress: bool = True) -> pd.DataFrame:
    """Measure what is missing: one row per context and method.

    Columns: `tokens`, `method`, `seconds` (median), `peak_gib`, `predicted_gib`, `counted_tflop`,
    `needed_tflop`; seconds and peak are missing where the memory does not suffice.
    `rows.attrs["runs"]` records the runs.
    """
    used: list[Path] = []
    rows = []
    for context in tqdm(study.contexts, desc="training steps", disable=not progress):
        steps = {name: _step(study.step, context, name) for name in study.methods}
        expected = {name: estimate(step) for name, step in steps.items()}
        fitting = {n: step for n, step in steps.items() if expected[n].peak_bytes <= study.limit_gib * 2**30}
        costs = compared_costs(list(fitting.values()), runs=runs, rounds=study.repeats, used=used)
        costs_by_method = dict(zip(fitting, costs, strict=True))
        for name in study.methods:
            cost = costs_by_method.get(name, StepCost(None, None))
            rows.append(
                {
                    "tokens": context,
                    "method": name,
                    "seconds": math.nan if cost.seconds is None else cost.seconds,
                    "peak_gib": math.nan if cost.peak_bytes is None else cost.peak_bytes / 2**30,
                    "predicted_gib": expected[name].peak_bytes / 2**30,
                    "counted_tflop": expected[name].counted_flops / 1e12,
                    "needed_tflop": expected[name].needed_flops / 1e12,
                }
            )
    frame = pd.DataFrame(rows)
    frame.attrs["runs"] = run_records(used)
    return frame


def _step(step: StepSpec, context: int, method: str) -> StepSpec:
    changes: dict[str, Any] = {"context": context, **STEPS[method]}
    return dataclasses.replace(step, **changes)


def efficiency_table(rows: pd.DataFrame, schedules: Sequence[str] = ()) -> pd.DataFrame:
    """The measurements beside their ratios to LoRA+ with full attention, and the ideal by FLOPs.

    A schedule's row is the mean of its steps and the largest of their peaks, computed from the rows of its
    patterns where all of them were measured.
    """
    parts = []
    for _, at_length in rows.groupby("tokens", sort=False):
        at_length = at_length.set_index("method", drop=False)
        extra = [line for name in schedules if (line := _mean_step(at_length, name)) is not None]
        base = at_length.loc[BASELINE]
        full = pd.concat([at_length, pd.DataFrame(extra)], ignore_index=True) if extra else at_length
        parts.append(
            pd.DataFrame(
                {
                    "tokens": full.tokens,
                    "method": full.method,
                    "seconds": full.seconds,
                    "time, ratio to LoRA+": full.seconds / base.seconds,
                    "ideal ratio (FLOPs)": full.needed_tflop / base.needed_tflop,
                    "peak (GiB)": full.peak_gib,
                    "memory, ratio": full.peak_gib / base.peak_gib,
                    "predicted (GiB)": full.predicted_gib,
                    "prediction off (%)": 100 * (full.predicted_gib / full.peak_gib - 1),
                    "counted (TFLOP)": full.counted_tflop,
                    "needed (TFLOP)": full.needed_tflop,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _mean_step(measured_at: pd.DataFrame, schedule: str) -> dict[str, Any] | None:
    """One step of a schedule, on average; None where one of its patterns is not among the methods."""
    by_pattern = {find_pattern(STEPS[n]["pattern"]): n for n in STEPS if STEPS[n]["pattern"] != EAGER}
    by_pattern[FULL] = BASELINE
    stages = PATTERN_SCHEDULES[schedule].stages
    if any(by_pattern.get(pattern) not in measured_at.index for _, pattern in stages):
        return None
    steps = [(share, measured_at.loc[by_pattern[pattern]]) for share, pattern in stages]
    values: list[tuple[float, dict[str, Any]]] = [
        (share, {str(name): value for name, value in step.items()}) for share, step in steps
    ]
    summed = ("seconds", "counted_tflop", "needed_tflop")
    return {
        "tokens": int(measured_at.tokens.iloc[0]),
        "method": f"LoRA+, {schedule} (ours, from its steps)",
        **{name: sum(share * step[name] for share, step in values) for name in summed},
        **{name: max(step[name] for _, step in values) for name in ("peak_gib", "predicted_gib")},
    }
