"""Intervals of means over documents: items of one document are drawn together."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 10_000


class MeanInterval(NamedTuple):
    """A mean and the ends of its 95 % interval; NaN for those where there is but one document."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], documents: Sequence[Hashable] | None = None) -> MeanInterval:
    """Mean of `values` with its percentile-bootstrap interval over `documents`, the document of each value
    (None: each value is one of its own). The same values give the same interval.

    Raises ValueError for no values, and where there are not as many documents as values.
    """
    names = range(len(values)) if documents is None else documents
    if not len(values) or len(names) != len(values):
        raise ValueError(f"{len(values)} values of {len(names)} documents: expected as many, at least one")
    _, place = np.unique([repr(name) for name in names], return_inverse=True)
    counts = np.bincount(place)
    sums = np.bincount(place, weights=np.asarray(values, dtype=float))
    mean = float(sums.sum() / counts.sum())
    if len(counts) < 2:
        return MeanInterval(mean, math.nan, math.nan)
    drawn = np.random.default_rng(0).integers(len(counts), size=(DRAWS, len(counts)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return MeanInterval(mean, float(low), float(high))
