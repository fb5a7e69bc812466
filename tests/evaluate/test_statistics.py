"""Intervals of shares against published tables, and the closed forms they stand for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import assert_close
from sinklora.evaluate.statistics import Accuracy


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
