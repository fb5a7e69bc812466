"""Whether leads, paired by item, are more or less than 0: Student's t, one correction for all of them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from sinklora.evaluate.paired_effects import ROUNDING, holm
from sinklora.reproduction.report.claims import LEVEL

BETTER, WORSE, OPEN = "better", "worse", "not decided"


def outcomes(leads: Sequence["np.ndarray[Any, np.dtype[np.floating]]"]) -> list[str]:
    """Of each array of leads, one an item or cluster: "better", "worse" or "not decided", by Student's t with
    Holm's correction for all arrays together.
    """
    adjusted = holm([_chance_alone(values) for values in leads])
    return [_outcome(float(np.mean(values)), p) for values, p in zip(leads, adjusted, strict=True)]


def _outcome(mean: float, p: float) -> str:
    if math.isnan(p) or p >= LEVEL:
        return OPEN
    return BETTER if mean > 0 else WORSE


def _chance_alone(values: "np.ndarray[Any, np.dtype[np.floating]]") -> float:
    """Two-sided p of a mean of 0 by Student's t; 1 where nothing differs, NaN for a single value."""
    if len(values) < 2:
        return math.nan
    nothing = ROUNDING * np.abs(values).max()
    if np.ptp(values) <= nothing:
        return float(not values.any())
    return float(stats.ttest_1samp(values, 0).pvalue)
