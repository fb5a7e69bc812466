"""Intervals and tests against published tables, sums by hand, and the closed forms they stand for."""

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import assert_close
from sinklora.evaluate.statistics import Accuracy, interval


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
    assert_close(
        interval(pd.Series(values), level), (mean - t * error, mean + t * error), atol=1e-9, rtol=1e-9
    )


def test_an_interval_without_spread_is_a_point_and_of_one_value_is_unknown() -> None:
    assert interval(pd.Series([2.0, 2.0, math.nan, 2.0])) == (2.0, 2.0)
    assert all(math.isnan(end) for end in interval(pd.Series([1.0, math.nan])))
    assert interval(pd.Series([1.0, 3.0], dtype="Float64")) == pytest.approx(
        (2 - 12.7062047362, 14.7062047362)
    )


@pytest.mark.parametrize(
    ("correct", "trials", "ends"),
    [
        (0, 10, (0.0, 0.27753)),
        (5, 10, (0.23659, 0.76341)),
        (10, 10, (0.72247, 1.0)),
        (81, 263, (0.25525, 0.36619)),
    ],
)
def test_published_wilson_intervals(correct: int, trials: int, ends: tuple[float, float]) -> None:
    assert_close(Accuracy(correct, trials).interval(), ends, atol=5e-5)


@given(
    counts=st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    z=st.floats(0.5, 4),
)
def test_wilson_intervals_are_the_roots_of_their_equation(counts: tuple[int, int], z: float) -> None:
    correct, trials = counts
    accuracy = Accuracy(correct, trials)
    low, high = accuracy.interval(z)
    assert 0 <= low <= accuracy.share <= high <= 1
    for end in (low, high):  # (share - p)² = z² p (1 - p) / n
        assert_close((accuracy.share - end) ** 2, z * z * end * (1 - end) / trials, atol=1e-12)


def test_the_default_z_is_1_96_itself() -> None:
    # As committed for 99 of 100; the exact 95 % quantile, 1.959964, would give 0.94551355.
    assert_close(Accuracy(99, 100).interval(), (0.9455124752390653, 0.9982326134344527), atol=1e-14)


@pytest.mark.parametrize(("correct", "trials"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_named(correct: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"correct={correct}, trials={trials}"):
        Accuracy(correct, trials)
