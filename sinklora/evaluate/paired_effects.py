"""Paired differences with two kinds of units, training seeds and test documents, and families of them.

Both are drawn with replacement, independently of each other (the pigeonhole bootstrap, Owen 2007, section 3):
the interval speaks of other seeds and of other documents. One seed leaves it to the documents alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000

Values = NDArray[np.floating]


@dataclass(frozen=True)
class Effect:
    """An estimate, the ends of its 95 and 90 % intervals, two-sided p of "it is 0", seeds and documents.

    p is that of the bootstrap's distribution (twice the smaller tail), at least 2 / (DRAWS + 1). Ends and p
    are NaN for a single document.
    """

    estimate: float
    low: float
    high: float
    low90: float
    high90: float
    p: float
    seeds: int
    documents: int

    @property
    def units(self) -> str:
        """How many of what: "5 seeds × 64 documents"."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return f"{seeds} × {self.documents} documents"


def effect(statistic: Callable[..., Values], *values: Values) -> Effect:
    """A statistic of means over seeds and documents, drawn anew for each sample.

    `values`: matrices [seeds, documents] of the same documents; those with more than one row share their
    seeds, so that differences are paired; one row (a model without training) has no seed to draw.
    `statistic` takes one array of means for each, [draws], and returns [draws]: `lambda a, b: a - b`.
    Raises ValueError for matrices that do not fit each other.
    """
    matrices = [np.atleast_2d(np.asarray(value, dtype=float)) for value in values]
    seeds = max(len(matrix) for matrix in matrices)
    documents = matrices[0].shape[1]
    if any(m.shape[1] != documents or len(m) not in (1, seeds) for m in matrices):
        raise ValueError(
            f"values of shapes {[m.shape for m in matrices]}: expected the same seeds and documents"
        )
    estimate = float(np.asarray(statistic(*(np.array([m.mean()]) for m in matrices)))[0])
    if documents < 2:
        nan = float("nan")
        return Effect(estimate, nan, nan, nan, nan, nan, seeds, documents)
    chance = np.random.default_rng(0)
    of_documents = chance.multinomial(documents, np.full(documents, 1 / documents), DRAWS) / documents
    of_seeds = chance.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    means = [_means(matrix, of_seeds, of_documents) for matrix in matrices]
    drawn = np.asarray(statistic(*means))
    low, low90, high90, high = map(float, np.percentile(drawn, (2.5, 5, 95, 97.5)))
    tail = min(np.mean(drawn <= 0), np.mean(drawn >= 0))
    p = min(1.0, 2 * (float(tail) * DRAWS + 1) / (DRAWS + 1))
    return Effect(estimate, low, high, low90, high90, p, seeds, documents)


def _means(matrix: Values, of_seeds: Values, of_documents: Values) -> Values:
    if len(matrix) == 1:
        return of_documents @ matrix[0]
    return np.einsum("bs,sd,bd->b", of_seeds, matrix, of_documents, optimize=True)


def difference(worse: Values, better: Values) -> Effect:
    """How much lower the second is than the first, in their unit."""
    return effect(lambda a, b: a - b, worse, better)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of one family of comparisons, adjusted by Holm's step-down method; NaN is no member."""
    p = np.asarray(p_values, dtype=float)
    members = np.flatnonzero(~np.isnan(p))
    adjusted, least = p.copy(), 0.0
    for rank, index in enumerate(members[np.argsort(p[members], kind="stable")]):
        least = max(least, min(1.0, (len(members) - rank) * p[index]))
        adjusted[index] = least
    return [float(value) for value in adjusted]
