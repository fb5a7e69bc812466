"""What numbers may be: each check with what it takes, what it refuses, and why."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.cache.attention_scores import Score
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy
from sinklora.cache.replay import Replay
from sinklora.ranges import check_count, check_decay, check_fraction, check_tokens, check_weight


def share(value: Any) -> float:
    return check_fraction("share", value, "the heads")


def size(value: Any) -> int | float:
    return check_tokens("size", value, "the text")


def size_or_none(value: Any) -> int | float:
    return check_tokens("size", value, "the text", zero=True)


def count(value: Any) -> int:
    return check_count("count", value, least=2)


def weight(value: Any) -> float:
    return check_weight("weight", value)


@pytest.mark.parametrize(
    ("check", "value", "taken"),
    [
        (count, 2, 2),
        (count, np.int64(7), 7),
        (share, 0, 0.0),
        (share, 1, 1.0),
        (share, np.float32(0.5), 0.5),
        (size, 1, 1),
        (size, 0.25, 0.25),
        (size, 1.0, 1.0),
        (size, Fraction(1, 4), 0.25),
        (size, np.int32(64), 64),
        (size_or_none, 0, 0),
        (weight, 0, 0.0),
        (weight, 1e9, 1e9),
        (check_decay, 1, 1.0),
        (check_decay, 1e-9, 1e-9),
    ],
)
def test_a_number_is_taken_as_pythons_own(check: Callable[[Any], Any], value: Any, taken: Any) -> None:
    result = check(value)
    assert (result, type(result)) == (taken, type(taken))


@pytest.mark.parametrize(
    ("check", "value", "words"),
    [
        (count, 1, "count=1: expected a whole number, 2 or more"),
        (count, 2.0, "count=2.0: expected a whole number, 2 or more"),
        (count, True, "count=True: expected a whole number, 2 or more"),
        (count, "2", "count='2': expected a whole number, 2 or more"),
        (share, -0.1, "share=-0.1: expected a fraction of the heads, 0 to 1"),
        (share, 1.1, "share=1.1: expected a fraction of the heads, 0 to 1"),
        (share, float("nan"), "share=nan: expected a fraction of the heads, 0 to 1"),
        (share, None, "share=None: expected a fraction of the heads, 0 to 1"),
        (size, 0, "size=0: expected more than 0"),
        (size, float("nan"), "size=nan: expected more than 0"),
        (size, 1.5, "size=1.5: a fraction of the text is at most 1.0; give tokens as int"),
        (size, "64", "size='64': expected a fraction of the text (float) or tokens (int)"),
        (size, False, "size=False: expected a fraction of the text (float) or tokens (int)"),
        (size_or_none, -1, "size=-1: expected 0 or more"),
        (weight, -1, "weight=-1: expected a number, 0 or more"),
        (weight, float("inf"), "weight=inf: expected a number, 0 or more"),
        (check_decay, 0, "decay=0: expected a number above 0 and at most 1"),
        (check_decay, 1.01, "decay=1.01: expected a number above 0 and at most 1"),
    ],
)
def test_what_is_refused_is_named_with_what_to_give(
    check: Callable[[Any], Any], value: Any, words: str
) -> None:
    with pytest.raises(ValueError) as refused:
        check(value)
    assert str(refused.value) == words


@pytest.mark.parametrize(
    ("of_numpy", "plain"),
    [
        (H2O(np.float64(0.2)), H2O(0.2)),
        (H2O(heavy=np.int64(8), recent=np.int32(8)), H2O(heavy=8, recent=8)),
        (Replay(np.int64(64), decay=np.float32(0.5)), Replay(64, decay=0.5)),
        (Score(window=np.int64(3)), Score(window=3)),
        (AttentionPattern(np.int64(64), np.int8(4)), AttentionPattern(64, 4)),
    ],
    ids=lambda spec: type(spec).__name__,
)
def test_a_spec_of_numpys_numbers_is_stored_and_named_as_any_other(
    of_numpy: CachePolicy | Score | AttentionPattern, plain: CachePolicy | Score | AttentionPattern
) -> None:
    assert (of_numpy, repr(of_numpy)) == (plain, repr(plain))
