"""Intervals over documents, against draws counted by hand and scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from helpers import assert_close
from sinklora.evaluate.bootstrap import mean_interval


def test_documents_are_drawn_and_not_their_items() -> None:
    # Of two documents a quarter of the draws are twice the first: 0, half both: 0.5, a quarter the second: 1.
    assert mean_interval([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert mean_interval([0.0] * 50 + [1.0] * 50, ["a"] * 50 + ["b"] * 50) == (0.5, 0.0, 1.0)
    apart = mean_interval([0.0] * 50 + [1.0] * 50)
    assert apart.mean == 0.5 and 0.38 < apart.low < 0.42 and 0.58 < apart.high < 0.62


def test_a_document_weighs_as_much_as_it_has_items() -> None:
    # Draws: "a" twice 1, both (3 + 0) / 4, "b" twice 0.
    assert mean_interval([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]) == (0.75, 0.0, 1.0)


def test_it_is_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(1).gamma(2, size=40)
    found = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=2)
    ends = found.confidence_interval
    assert_close(mean_interval(values.tolist())[1:], [ends.low, ends.high], atol=0.02)
    assert mean_interval(values.tolist()) == mean_interval(values.tolist())


def test_one_document_has_no_interval() -> None:
    mean, low, high = mean_interval([1.0, 2.0], ["a", "a"])
    assert mean == 1.5 and math.isnan(low) and math.isnan(high)


def test_wrong_numbers_of_values_are_refused() -> None:
    for values, documents in (([], None), ([1.0], ["a", "b"])):
        with pytest.raises(ValueError, match="expected as many"):
            mean_interval(values, documents)
