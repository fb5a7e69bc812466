"""Intervals of means over documents: items of one document do not count as independent.

Student's, with one degree of freedom less than there are documents: percentiles of a bootstrap of few
documents are too sure.
"""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class MeanInterval(NamedTuple):
    """A mean and the ends of its interval; NaN for those that cannot be told."""

    mean: float
    low: float
    high: float


def mean_interval(
    values: Sequence[float], documents: Sequence[Hashable] | None = None, *, level: float = 0.95
) -> MeanInterval:
    """Mean of `values` and its interval over `documents`, the document of each value (None: each value is one
    of its own). A document weighs as much as it has values.

    There are no ends for a single document. Raises ValueError for no values, and where there are not as many
    documents as values.
    """
    mean, error, quantile = _over_documents(values, documents, level)
    return MeanInterval(mean, mean - quantile * error, mean + quantile * error)


def share_interval(values: Sequence[float], documents: Sequence[Hashable] | None = None) -> MeanInterval:
    """The same at 95 % of values between 0 and 1, with ends between them: Wilson's interval of as many
    independent items as would say as much (Korn and Graubard 1998), or of all where documents do not differ.

    There are no ends for a single document. Raises ValueError as `mean_interval` does.
    """
    mean, error, quantile = _over_documents(values, documents)
    worth = mean * (1 - mean) / error**2 if error > 0 else math.inf
    items = worth if 0 < worth < math.inf else len(values)
    extra = quantile**2 / items
    middle = (mean + extra / 2) / (1 + extra)
    half = quantile * math.sqrt(mean * (1 - mean) / items + extra / items / 4) / (1 + extra)
    return MeanInterval(mean, middle - half, middle + half)


def _over_documents(
    values: Sequence[float], documents: Sequence[Hashable] | None, level: float = 0.95
) -> tuple[float, float, float]:
    """The mean of the values, its standard error over documents (that of a ratio of two sums, Cochran 1977,
    section 2.11; NaN for a single document) and Student's quantile.
    """
    names = range(len(values)) if documents is None else documents
    if not len(values) or len(names) != len(values):
        raise ValueError(f"{len(values)} values of {len(names)} documents: expected as many, at least one")
    _, place = np.unique([repr(name) for name in names], return_inverse=True)
    counts = np.bincount(place)
    sums = np.bincount(place, weights=np.asarray(values, dtype=float))
    mean, number = float(sums.sum() / counts.sum()), len(counts)
    if number < 2:
        return mean, math.nan, math.nan
    apart = sums - mean * counts
    if np.abs(apart).max() <= 1e-12 * max(1.0, float(np.abs(sums).max())):  # rounding
        apart = np.zeros(number)
    error = math.sqrt(number / (number - 1) * float((apart**2).sum())) / float(counts.sum())
    return mean, error, float(stats.t.ppf((1 + level) / 2, number - 1))
