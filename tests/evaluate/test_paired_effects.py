"""Effects over seeds and documents: by hand, by theory, and Holm's correction by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from helpers import assert_close
from sinklora.evaluate.paired_effects import difference, effect, holm, ratio, ratio_within, within


def test_the_estimate_is_the_difference_of_the_means() -> None:
    worse, better = np.array([[3.0, 4.0], [5.0, 6.0]]), np.array([[1.0, 4.0], [2.0, 3.0]])
    found = difference(worse, better)
    assert found.estimate == 2.0
    assert found.units == "2 seeds × 2 documents"
    assert found.low <= found.low90 <= found.estimate <= found.high90 <= found.high


def test_what_all_documents_share_is_sure() -> None:
    """Documents differ by far more than models do: only paired differences tell."""
    levels = np.random.default_rng(1).normal(size=(1, 64)) * 10
    found = difference(np.repeat(levels + 0.5, 3, 0), np.repeat(levels, 3, 0))
    assert_close([found.low, found.high], [0.5, 0.5], atol=1e-9)
    assert found.p == 0
    assert difference(levels, levels).p == 1


@pytest.mark.parametrize("seeds", [1, 5])
def test_the_interval_is_that_of_both_kinds_of_units(seeds: int) -> None:
    """Independent effects of seeds and documents: the variance of the mean is the sum of both parts'."""
    chance = np.random.default_rng(2)
    by_seed, by_document = chance.normal(size=(seeds, 1)) * 0.3, chance.normal(size=(1, 200))
    found = difference(by_seed + by_document, np.zeros((1, 200)))
    kinds = [(x.var(ddof=1) / x.size, x.size - 1) for x in (by_document, by_seed) if x.size > 1]
    error = math.sqrt(sum(variance for variance, _ in kinds))
    freedom = error**4 / sum(variance**2 / units for variance, units in kinds)
    half = stats.t.ppf(0.975, freedom) * error
    assert_close([found.low, found.high], found.estimate + half * np.array([-1, 1]), atol=0.1 * error)
    assert found.p == pytest.approx(2 * stats.t.sf(abs(found.estimate) / error, freedom), rel=0.1)


@pytest.mark.parametrize("documents", [4, 8, 64])
def test_few_documents_are_as_unsure_as_student_says(documents: int) -> None:
    """Normal values of one model: the bootstrap of few units alone would be too sure."""
    values = stats.norm.ppf((np.arange(documents) + 0.5) / documents)[None] + 1
    found, students = difference(values, np.zeros((1, documents))), stats.ttest_1samp(values[0], 0)
    low, high = students.confidence_interval(0.95)
    assert_close([found.low, found.high], [low, high], atol=0.02 * (high - low))
    assert found.p == pytest.approx(students.pvalue, rel=0.15, abs=1e-6)


def test_an_untrained_model_has_no_seed_to_draw() -> None:
    trained = np.array([[1.0, 2.0], [2.0, 3.0]])
    assert difference(np.array([[4.0, 5.0]]), trained).estimate == 2.5
    with pytest.raises(ValueError, match="same seeds and documents"):
        difference(np.ones((3, 2)), trained)
    with pytest.raises(ValueError, match="same seeds and documents"):
        difference(np.ones((2, 3)), trained)


def test_a_statistic_of_three_models_is_drawn_together() -> None:
    start, full = np.full((1, 8), 4.0), np.full((2, 8), 2.0)
    found = effect(lambda s, f, m: (s - m) / (s - f), start, full, np.full((2, 8), 3.0))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


def test_one_document_has_no_interval() -> None:
    found = difference(np.ones((3, 1)), np.zeros((3, 1)))
    assert found.estimate == 1 and math.isnan(found.low) and math.isnan(found.p)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.03, 0.04: times 3, 2, 1 and never falling.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    found = holm([0.02, math.nan])
    assert found[0] == pytest.approx(0.02) and math.isnan(found[1])
    assert holm([]) == []


def test_a_ratio_has_fiellers_interval() -> None:
    """Of two means of one model's documents: the roots of a quadratic, by hand."""
    chance = np.random.default_rng(3)
    top, bottom = 1 + 0.6 * chance.normal(size=60), 3 + 2 * chance.normal(size=60)
    found = ratio(lambda a, b: a, lambda a, b: b, top[None], bottom[None])
    square = stats.t.ppf(0.975, 59) ** 2 / 60
    (a, c), (_, b) = np.cov(top, bottom)
    # (mean_top - r mean_bottom)^2 = square (a - 2 r c + r^2 b)
    roots = np.roots(
        [
            bottom.mean() ** 2 - square * b,
            -2 * (top.mean() * bottom.mean() - square * c),
            top.mean() ** 2 - square * a,
        ]
    )
    assert found.estimate == pytest.approx(top.mean() / bottom.mean())
    assert_close([found.low, found.high], sorted(roots), atol=0.02 * float(np.ptp(roots)))
    assert found.low < found.low90 < found.estimate < found.high90 < found.high
    assert found.estimate - found.low < found.high - found.estimate, "skew, as the smaller bottoms are"


def test_a_ratio_of_what_may_be_nothing_has_no_ends() -> None:
    top, bottom = np.ones((1, 8)), np.array([[1.0, -1.0, 2.0, -2.0, 1.0, -1.0, 2.0, -1.5]])
    found = ratio(lambda a, b: a, lambda a, b: b, top, bottom)
    assert math.isnan(found.low) and math.isnan(found.high90)
    sure = ratio(lambda a, b: a, lambda a, b: b, np.ones((2, 8)), np.full((1, 8), 2.0))
    assert (sure.estimate, sure.low, sure.high) == (0.5, 0.5, 0.5)
    negative = ratio(lambda a, b: -a, lambda a, b: -b, np.ones((2, 8)), np.full((1, 8), 2.0))
    assert (negative.estimate, negative.low, negative.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("estimate", "inside"), [(0.0, True), (0.02, True), (-0.05, True), (0.2, False), (-0.3, False)]
)
def test_equivalence_is_two_one_sided_tests(estimate: float, inside: bool) -> None:
    """By scipy's one-sided t-tests of values that are Student's by construction."""
    values = stats.norm.ppf((np.arange(64) + 0.5) / 64) * 0.2
    values += estimate - values.mean()
    tested = within(difference(values[None], np.zeros((1, 64))), 0.1)
    above = stats.ttest_1samp(values, -0.1, alternative="greater").pvalue
    below = stats.ttest_1samp(values, 0.1, alternative="less").pvalue
    assert tested.within == pytest.approx(max(above, below), rel=0.15, abs=1e-9)
    assert tested.beyond == pytest.approx(min(1, 2 * min(1 - above, 1 - below)), rel=0.15, abs=1e-9)
    assert tested.holds == inside and tested.p == min(tested.within, tested.beyond)


def test_what_does_not_vary_is_within_or_beyond() -> None:
    same = np.ones((1, 8))
    assert within(difference(same + 0.05, same), 0.1).within == 0
    far = within(difference(same + 0.5, same), 0.1)
    assert (far.holds, far.p) == (False, 0)
    unknown = within(difference(np.ones((1, 1)), np.zeros((1, 1))), 5.0)
    assert math.isnan(unknown.p), "one document says nothing"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.7), (0.6, 0.9), (0.1, math.inf), (0.52, math.inf)])
def test_a_ratio_lies_within_as_its_interval_says(sign: int, low: float, high: float) -> None:
    """The 90 % interval of Fieller and the two one-sided tests at 5 % are the same question."""
    chance = np.random.default_rng(3)
    bottom = sign * (2 + chance.normal(size=(1, 64)) * 0.5)
    top = 0.5 * bottom + chance.normal(size=(1, 64)) * 0.2
    given = (lambda a, b: a), (lambda a, b: b)
    found = ratio(*given, top, bottom)
    tested = ratio_within(*given, low, high, top, bottom)
    assert tested.effect == found
    assert (tested.within < 0.05) == (low < found.low90 and found.high90 < high)
    assert (tested.beyond < 0.05) == (found.high < low or high < found.low)


def test_a_ratio_to_what_may_be_nothing_is_not_decided() -> None:
    bottom = np.random.default_rng(4).normal(size=(1, 16))
    tested = ratio_within(lambda a, b: a, lambda a, b: b, 0.0, 1.0, np.ones((1, 16)), bottom)
    assert math.isnan(tested.p) and not tested.holds
