"""Intervals over documents, against what is counted by hand and scipy's."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from helpers import assert_close
from sinklora.evaluate.clustered_means import MeanInterval, mean_interval, share_interval

T1, T3 = 12.706204736, 3.182446305  # Student's quantiles at 97.5 %, of 1 and of 3 degrees of freedom


def test_of_a_value_a_document_it_is_students() -> None:
    values = np.random.default_rng(1).gamma(2, size=12)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    assert_close(mean_interval(values.tolist())[1:], [expected.low, expected.high], atol=1e-9)


# Two-sided quantiles of Student's t, to ten digits.
@pytest.mark.parametrize(
    ("freedom", "level", "t"),
    [
        (1, 0.95, 12.7062047362),
        (2, 0.95, 4.3026527297),
        (4, 0.95, 2.7764451052),
        (30, 0.95, 2.0422724563),
        (63, 0.95, 1.9983405425),
        (2, 0.99, 9.9248432009),
        (1, 0.5, 1.0),  # a Cauchy variable lies between -1 and 1 half of the time
    ],
)
def test_intervals_have_students_quantiles(freedom: int, level: float, t: float) -> None:
    # Alternating -1 and 1 or so: any values do, their standard error is taken by hand.
    values = [float((-1) ** i) for i in range(freedom + 1)]
    mean = math.fsum(values) / len(values)
    error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / freedom / len(values))
    found = mean_interval(values, level=level)
    assert_close(found, (mean, mean - t * error, mean + t * error), atol=1e-9, rtol=1e-9)


def test_documents_count_and_not_their_items() -> None:
    # Two documents of mean 0 and 1: a standard error of 0.5 of their mean, however many items they have.
    for items in (1, 50):
        values, documents = [0.0] * items + [1.0] * items, ["a"] * items + ["b"] * items
        assert_close(mean_interval(values, documents), [0.5, 0.5 - 0.5 * T1, 0.5 + 0.5 * T1], atol=1e-6)


def test_a_document_weighs_as_much_as_it_has_items() -> None:
    # Sums less mean times counts: 3 - 0.75 * 3 and 0 - 0.75; twice their squares, over four items.
    error = math.sqrt(2 * 2 * 0.75**2) / 4
    found = mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert_close(found, [0.75, 0.75 - T1 * error, 0.75 + T1 * error], atol=1e-6)


def test_a_share_of_independent_items_is_wilsons_with_students_quantile() -> None:
    # Four items, one of them right: standard error sqrt(0.25 * 0.75 / 3), worth three independent items.
    p, n = 0.25, 3.0
    middle = (p + T3**2 / (2 * n)) / (1 + T3**2 / n)
    half = T3 * math.sqrt(p * (1 - p) / n + T3**2 / (4 * n**2)) / (1 + T3**2 / n)
    assert_close(share_interval([1.0, 0.0, 0.0, 0.0]), [p, middle - half, middle + half], atol=1e-6)


def test_of_many_independent_items_it_is_wilsons() -> None:
    values = [1.0] * 300 + [0.0] * 700
    ends = stats.binomtest(300, 1000).proportion_ci(method="wilson")
    assert_close(share_interval(values), [0.3, ends.low, ends.high], atol=2e-4)


@pytest.mark.parametrize("right", [0, 128])
def test_none_or_all_right_is_not_sure_to_be_so_elsewhere(right: int) -> None:
    documents = [number // 16 for number in range(128)]
    found = share_interval([1.0] * right + [0.0] * (128 - right), documents)
    beyond = 2.364624252**2 / (128 + 2.364624252**2)  # of 7 degrees of freedom
    assert_close(found, [0, 0, beyond] if not right else [1, 1 - beyond, 1], atol=1e-9)


def test_a_share_stays_between_nothing_and_all() -> None:
    documents = [number // 4 for number in range(12)]
    found = share_interval([1.0] + [0.0] * 11, documents)
    assert 0 < found.low < 1 / 12 < found.high < 1
    assert mean_interval([1.0] + [0.0] * 11, documents).low < 0


def test_documents_that_do_not_differ_leave_a_mean_without_width() -> None:
    found = mean_interval([0.1, 0.3] * 3, ["a", "a", "b", "b", "c", "c"])
    assert found.low == found.mean == found.high == pytest.approx(0.2)


@pytest.mark.parametrize("interval", [mean_interval, share_interval])
def test_one_document_has_no_interval(interval: Callable[..., MeanInterval]) -> None:
    mean, low, high = interval([1.0, 0.0], ["a", "a"])
    assert mean == 0.5 and math.isnan(low) and math.isnan(high)


def test_wrong_numbers_of_values_are_refused() -> None:
    for values, documents in (([], None), ([1.0], ["a", "b"])):
        with pytest.raises(ValueError, match="expected as many"):
            mean_interval(values, documents)
