"""Paired differences with two kinds of units, training seeds and test documents, and families of them.

Each kind is drawn with replacement (the pigeonhole bootstrap, Owen 2007, section 3), which gives the
standard error of any statistic of means: intervals speak of other seeds and of other documents. A bootstrap
of few units is too sure, by n / (n - 1) in the variance and as a normal distribution is beside Student's:
intervals are Student's, with Satterthwaite's degrees of freedom. One seed leaves them to the documents alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

DRAWS = 10_000

ROUNDING = 1e-12  # of the values: a standard error below that is none

Values = NDArray[np.floating]


@dataclass(frozen=True)
class Effect:
    """An estimate, the ends of its 95 and 90 % intervals, two-sided p of "it is 0", seeds and documents.

    p is Student's, of the estimate, its standard error `error` and `freedom` degrees of freedom. Ends and p
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
    error: float = math.nan
    freedom: float = math.inf

    @property
    def holds(self) -> bool:
        """Whether the estimate says that it is more than 0."""
        return self.estimate > 0

    @property
    def units(self) -> str:
        """How many of what: "5 seeds × 64 documents"."""
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds"
        return f"{seeds} × {self.documents} documents"

    def chance_above(self, value: float) -> float:
        """One-sided p of "it is no more than `value`"."""
        if self.error == 0:
            return float(self.estimate <= value)
        return float(stats.t.sf((self.estimate - value) / self.error, self.freedom))


@dataclass(frozen=True)
class Equivalence:
    """An effect, and whether it lies between two ends: two one-sided tests (Schuirmann 1987).

    `within`: p of "it does not lie between them", the larger of the two; `beyond`: p of "it does", twice the
    smaller of those of the other sides. NaN where the effect's p is.
    """

    effect: Effect
    within: float
    beyond: float

    @property
    def holds(self) -> bool:
        """Whether the estimate says that it lies between the ends."""
        return self.within < self.beyond

    @property
    def p(self) -> float:
        """Of that, or of its opposite: whichever the estimate says."""
        return float(np.minimum(self.within, self.beyond))


def effect(statistic: Callable[..., Values], *values: Values) -> Effect:
    """A statistic of means over seeds and documents, drawn anew for each sample.

    `values`: matrices [seeds, documents] of the same documents; those with more than one row share their
    seeds, so that differences are paired; one row (a model without training) has no seed to draw.
    `statistic` takes one array of means for each, [draws], and returns [draws]: `lambda a, b: a - b`.
    Raises ValueError for matrices that do not fit each other.
    """
    matrices = _matrices(values)
    estimate = float(np.asarray(statistic(*(np.array([m.mean()]) for m in matrices)))[0])
    seeds, documents = _units(matrices)
    if documents < 2:
        nan = math.nan
        return Effect(estimate, nan, nan, nan, nan, nan, seeds, documents)
    kinds = [(sample.var(), count) for sample, count in _samples(statistic, matrices)]
    error, freedom = _standard_error(*kinds)
    nothing = ROUNDING * max(float(np.abs(m).max()) for m in matrices)
    half, half90 = (stats.t.ppf((1 + level) / 2, freedom) * error for level in (0.95, 0.9))
    low, high, low90, high90 = (float(estimate + x) for x in (-half, half, -half90, half90))
    certain = error <= nothing
    p = float(abs(estimate) <= nothing) if certain else 2 * stats.t.sf(abs(estimate) / error, freedom)
    error = 0.0 if certain else error
    return Effect(estimate, low, high, low90, high90, float(p), seeds, documents, error, freedom)


def ratio(top: Callable[..., Values], bottom: Callable[..., Values], *values: Values) -> Effect:
    """One statistic of means over another, with Fieller's interval (1954); p is that of "the first is 0".

    The interval holds every ratio r for which `top - r * bottom` may be 0, so it is as skew as it has to be.
    Ends are NaN where `bottom` itself may be 0, the estimate where it is. Arguments as in `effect`.
    """
    matrices = _matrices(values)
    means = [np.array([m.mean()]) for m in matrices]
    above, below = (float(np.asarray(statistic(*means))[0]) for statistic in (top, bottom))
    nan, of_top, of_bottom = math.nan, effect(top, *values), effect(bottom, *values)
    estimate = above / below if below else nan
    share = replace(of_top, estimate=estimate, low=nan, high=nan, low90=nan, high90=nan, error=nan)
    if share.documents < 2:
        return share
    pairs = zip(_samples(top, matrices), _samples(bottom, matrices), strict=True)
    kinds = [(np.cov(a, b, ddof=0), count) for (a, count), (b, _) in pairs]

    def gap(r: float, level: float, side: int) -> float:
        """How far `top - r * bottom` lies beyond the half width of its interval, on one side."""
        contrast = np.array([1.0, -r])
        variances = [(max(0.0, float(contrast @ matrix @ contrast)), count) for matrix, count in kinds]
        error, freedom = _standard_error(*variances)
        beyond = side * math.copysign(1.0, below) * (above - r * below)
        return beyond - float(stats.t.ppf((1 + level) / 2, freedom)) * error

    ends = []
    for level, apart in (
        (0.95, of_bottom.low * of_bottom.high > 0),
        (0.9, of_bottom.low90 * of_bottom.high90 > 0),
    ):
        ends += [_end(gap, share.estimate, level, side) if apart else math.nan for side in (1, -1)]
    return replace(share, low=ends[0], high=ends[1], low90=ends[2], high90=ends[3])


def within(measured: Effect, margin: float) -> Equivalence:
    """Whether a difference is less than `margin` either way."""
    return _equivalence(measured, measured.chance_above(-margin), 1 - measured.chance_above(margin))


def ratio_within(
    top: Callable[..., Values], bottom: Callable[..., Values], low: float, high: float, *values: Values
) -> Equivalence:
    """Whether a ratio lies between `low` and `high` (infinite: there is no such end), by what Fieller's
    interval is made of: `top - low * bottom`.

    Arguments as in `ratio`; nothing is said where `bottom` itself may be 0.
    """
    share = ratio(top, bottom, *values)
    if math.isnan(share.low):
        return Equivalence(share, math.nan, math.nan)
    sign = math.copysign(1.0, effect(bottom, *values).estimate)

    def chance(end: float, side: float) -> float:
        """p of "the ratio is not on this side of an end"."""
        if math.isinf(end):
            return 0.0
        beyond = effect(lambda *means: side * sign * (top(*means) - end * bottom(*means)), *values)
        return beyond.chance_above(0)

    return _equivalence(share, chance(low, 1), chance(high, -1))


def _equivalence(measured: Effect, too_low: float, too_high: float) -> Equivalence:
    """From the p of "it is no more than the lower end", and of "it is no less than the upper end"."""
    beyond = min(1.0, 2 * min(1 - too_low, 1 - too_high))
    if math.isnan(too_low + too_high):
        return Equivalence(measured, math.nan, math.nan)
    return Equivalence(measured, max(too_low, too_high), beyond)


def _end(gap: Callable[[float, float, int], float], estimate: float, level: float, side: int) -> float:
    """Where the gap is 0: below the estimate for side 1, above it for side -1."""
    if gap(estimate, level, side) >= 0:  # nothing varies
        return estimate
    step = 1e-3 * max(1.0, abs(estimate))
    while gap(estimate - side * step, level, side) < 0:
        step *= 2
    between = (estimate - side * step, estimate)
    return float(optimize.brentq(gap, min(between), max(between), args=(level, side)))


def _matrices(values: Sequence[Values]) -> list[Values]:
    matrices = [np.atleast_2d(np.asarray(value, dtype=float)) for value in values]
    seeds, documents = _units(matrices)
    if any(m.shape[1] != documents or len(m) not in (1, seeds) for m in matrices):
        raise ValueError(
            f"values of shapes {[m.shape for m in matrices]}: expected the same seeds and documents"
        )
    return matrices


def _units(matrices: Sequence[Values]) -> tuple[int, int]:
    """How many seeds and documents there are."""
    return max(len(matrix) for matrix in matrices), matrices[0].shape[1]


def _samples(statistic: Callable[..., Values], matrices: Sequence[Values]) -> list[tuple[Values, int]]:
    """The statistic where documents are drawn, and where seeds are: [DRAWS], and how many units there are."""
    seeds, documents = _units(matrices)
    chance = np.random.default_rng(0)
    of_documents, of_seeds = _draws(chance, documents), _draws(chance, seeds)
    all_seeds, all_documents = np.full_like(of_seeds, 1 / seeds), np.full_like(of_documents, 1 / documents)
    by_document = np.asarray(statistic(*(_means(m, all_seeds, of_documents) for m in matrices)))
    by_seed = np.asarray(statistic(*(_means(m, of_seeds, all_documents) for m in matrices)))
    return [(by_document, documents), (by_seed, seeds)]


def _draws(chance: np.random.Generator, units: int) -> Values:
    """The weight of each unit in each sample: [DRAWS, units]."""
    return chance.multinomial(units, np.full(units, 1 / units), DRAWS) / units


def _means(matrix: Values, of_seeds: Values, of_documents: Values) -> Values:
    if len(matrix) == 1:
        return of_documents @ matrix[0]
    return np.einsum("bs,sd,bd->b", of_seeds, matrix, of_documents, optimize=True)


def _standard_error(*kinds: tuple[float, int]) -> tuple[float, float]:
    """Standard error and degrees of freedom from the bootstrap variance of each kind of units, and their
    number; a kind of one unit says nothing.
    """
    varied = [(variance * count / (count - 1), count - 1) for variance, count in kinds if count > 1]
    total = sum(variance for variance, _ in varied)
    squares = sum(variance**2 / freedom for variance, freedom in varied)
    return math.sqrt(total), total**2 / squares if squares else math.inf


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
