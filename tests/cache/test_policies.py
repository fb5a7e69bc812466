"""What policies say of themselves: names, budgets, splits, and the keys under which runs are stored."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest

from sinklora.cache.attention_scores import Score
from sinklora.cache.expected_attention import ExpectedAttention
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.novelty import Novelty
from sinklora.cache.policies import (
    POLICIES,
    CachePolicy,
    make_policy,
    parse_budget,
    policy_key,
    policy_text,
)
from sinklora.cache.replay import Replay
from sinklora.cache.sliding_window import Local, SlidingWindow
from sinklora.cache.snapkv import SnapKV
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.cache.tova import TOVA
from sinklora.records.files import json_hash

# Made by the code before classes and fields were renamed: hashes of runs that are finished, and their text.
STORED = [
    (
        Full(),
        "56c5b333f85bd997e0169bce0100bcae3fd26e020229f62c9781d0de80475d22",
        "Full(budget=4611686018427387904)",
    ),
    (
        H2O(0.2),
        "130966a17ed1d758a4210bd68efbbd0bd0e135b00394cddd80bb4a49b85ad5ad",
        "H2O(budget=0.2, heavy=None, recent=None, protect=0, how=Score(decay=1.0, window=0, average=False))",
    ),
    (
        H2O(heavy=10, recent=20),
        "6e44f0cd6349eb3409e49fa50fc9978479ea2433a87d68124efca8d7faebfa7e",
        "H2O(budget=None, heavy=10, recent=20, protect=0, how=Score(decay=1.0, window=0, average=False))",
    ),
    (
        H2O(0.1, recent=0.05, sink_tokens=4, scoring=Score(decay=0.9)),
        "ffcd266cfcadf36915715db9d0713122aa36e53ab23b3674dbe901675c7cd5d8",
        "H2O(budget=0.1, heavy=None, recent=0.05, protect=4, how=Score(decay=0.9, window=0, average=False))",
    ),
    (
        H2O(64, sink_tokens=2, scoring=Score(window=32)),
        "878b4553c9e91d87094c90330d8c9ae6f47976f1e48c6d945e458b2970005367",
        "H2O(budget=64, heavy=None, recent=None, protect=2, how=Score(decay=1.0, window=32, average=False))",
    ),
    (
        SlidingWindow(64),
        "6c356c2a0d64704ef739bcf892ef15a57dffe0d124bb39d58af5f32bcca3a4ec",
        "Local(budget=64)",
    ),
    (
        StreamingLLM(0.5, sink_tokens=2),
        "cc79ff24f15e1fead6e44321ff6436fd43b01669587d1cc5360e2ec1d47be8e8",
        "StreamingLLM(budget=0.5, sink_tokens=2)",
    ),
    (
        Novelty(0.2),
        "7d18b88fd8eaef54f6a368886b1151dbb88931283ddd00784f7ef58033755801",
        "Novelty(budget=0.2, share=0.25, always_recent=32, protect=0)",
    ),
    (
        Novelty(128, share=0.5, always_recent=8, sink_tokens=4),
        "3ae4d6e7aeda9d0c81ff504005aa73213e0122a9799316b177ddc4b2f0e0e3a5",
        "Novelty(budget=128, share=0.5, always_recent=8, protect=4)",
    ),
    (None, "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b", "None"),
]


@pytest.mark.parametrize(("policy", "digest", "text"), STORED, ids=lambda value: str(value)[:24])
def test_finished_runs_are_found_under_the_names_of_then(
    policy: CachePolicy | None, digest: str, text: str
) -> None:
    assert json_hash(policy_key(policy)) == digest
    assert policy_text(policy) == text


# --- the registry -------------------------------------------------------------------------------------------


def test_every_policy_is_found_by_its_name() -> None:
    assert {"full", "h2o", "local", "streaming", "novelty", "replay"} <= set(POLICIES)
    assert {"expected_attention", "snapkv", "tova"} <= set(POLICIES)
    assert Local is SlidingWindow is POLICIES["local"]
    for name, policy in POLICIES.items():
        made = make_policy(name, 8 if policy.bounded else None)
        assert type(made) is policy and policy.name == name
        assert made.split(100).total == (8 if policy.bounded else made.split(1).total)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match=r"name='h2o' of .*Mine: sinklora.cache.h2o.H2O has it already"):

        @dataclass(frozen=True)
        class Mine(CachePolicy):
            name: ClassVar[str] = "h2o"

    assert POLICIES["h2o"] is H2O


def test_a_policy_without_a_name_of_its_own_is_not_registered() -> None:
    @dataclass(frozen=True)
    class Variant(H2O):
        pass

    assert Variant(8).split(20) == H2O(8).split(20)
    assert POLICIES["h2o"] is H2O and Variant not in POLICIES.values()


@pytest.mark.parametrize(
    ("name", "budget", "words"),
    [
        ("h3o", 0.2, "kv='h3o': expected one of expected_attention, full, h2o"),
        ("full", 0.2, "budget=0.2: the full cache has none"),
        ("h2o", None, "kv='h2o' needs a budget"),
        ("local", 2.0, "budget=2.0"),
    ],
)
def test_wrong_requests_are_named(name: str, budget: float | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_policy(name, budget)


def test_budgets_are_read_from_text() -> None:
    given = ["0.2", "64", " 64 ", "1.0", "1", "2e-1", "", None, 0.3, 12]
    expected = [0.2, 64, 64, 1.0, 1, 0.2, None, None, 0.3, 12]
    read = [parse_budget(budget) for budget in given]
    assert read == expected
    assert [type(budget) for budget in read] == [type(budget) for budget in expected]
    with pytest.raises(ValueError, match=r"budget='much': expected a fraction such as 0.2 or 20%, or tokens"):
        parse_budget("much")


# --- budgets and splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: H2O(0), "budget=0: expected more than 0"),
        (lambda: H2O(-3), "budget=-3"),
        (lambda: H2O(1.5), "budget=1.5"),
        (lambda: H2O(True), "budget=True"),
        (lambda: H2O("0.2"), "budget='0.2'"),
        (lambda: H2O(float("nan")), "budget=nan"),
        (lambda: H2O(8, recent=9), "recent=9 is larger than budget=8"),
        (lambda: H2O(8, recent=0.5), "fractions"),
        (lambda: H2O(8, recent=-1), "recent=-1: expected 0 or more"),
        (lambda: H2O(heavy=4), "give budget"),
        (lambda: H2O(heavy=0.7, recent=0.7), r"heavy \+ recent=1.4"),
        (lambda: H2O(), "give budget"),
        (lambda: H2O(8, sink_tokens=8), "sink_tokens=8"),
        (lambda: H2O(heavy=4, recent=4, sink_tokens=5), "sink_tokens=5: more than the 4 heavy hitters"),
        (lambda: H2O(8, recent=6, sink_tokens=3), "sink_tokens=3: more than the 2 heavy hitters"),
        (lambda: H2O(8, sink_tokens=-1), "sink_tokens=-1"),
        (lambda: H2O(8, scoring="sum"), "scoring='sum': expected a Score"),
        (lambda: StreamingLLM(4), "sink_tokens=4"),
        (lambda: SlidingWindow(0.0), "budget=0.0"),
        (lambda: Novelty(8, share=1), "share=1"),
        (lambda: Novelty(8, always_recent=2.5), "always_recent=2.5"),
        (lambda: Novelty(8, sink_tokens=8), "sink_tokens=8"),
        (lambda: Replay(8, recent_share=1.5), "recent_share=1.5: expected a fraction of the budget, 0 to 1"),
        (lambda: Replay(8, recent_share=True), "recent_share=True"),
        (lambda: Replay(8, decay=1.01), "decay=1.01: expected a number above 0 and at most 1"),
        (lambda: Replay(8, decay="0.9"), "decay='0.9': expected a number above 0 and at most 1"),
        (lambda: Replay(8, attention_weight=-0.1), "attention_weight=-0.1: expected a number, 0 or more"),
        (lambda: Replay(8, attention_weight=float("inf")), "attention_weight=inf"),
        (lambda: Replay(8, attention_weight=float("nan")), "attention_weight=nan"),
        (lambda: Replay(4), "sink_tokens=4: leaves no place for a new token in a budget of 4"),
        (lambda: Replay(1.5), "budget=1.5"),
        (lambda: Replay(8, share="heads"), "share='heads': expected one of head, layer, model"),
        (lambda: Replay(8, own_share=1.1), "own_share=1.1: expected a fraction of the heavy hitters, 0 to 1"),
        (lambda: SnapKV(0), "budget=0: expected more than 0"),
        (lambda: SnapKV(8, window=0), "window=0: expected a whole number, 1 or more"),
        (lambda: SnapKV(8, window=2.0), "window=2.0: expected a whole number"),
        (lambda: SnapKV(8, pool=4), "pool=4: expected an odd number of neighbours"),
        (lambda: SnapKV(8, pool=-1), "pool=-1"),
        (lambda: SnapKV(8, share="all"), "share='all': expected one of head, layer, model"),
        (lambda: SnapKV(8, own_share=True), "own_share=True"),
        (lambda: ExpectedAttention(4), "sink_tokens=4: leaves no place for a new token in a budget of 4"),
        (lambda: ExpectedAttention(8, future=0), "future=0: expected a whole number, 1 or more"),
        (lambda: ExpectedAttention(8, recent_share=2), "recent_share=2: expected a fraction of the budget"),
        (lambda: ExpectedAttention(8, epsilon=-0.01), "epsilon=-0.01: expected a number, 0 or more"),
        (lambda: ExpectedAttention(8, epsilon=float("nan")), "epsilon=nan"),
        (lambda: ExpectedAttention(8, share="row"), "share='row': expected one of head, layer, model"),
        (lambda: TOVA(1.5), "budget=1.5: a fraction of the prompt is at most 1.0"),
        (lambda: Score(decay=0), "decay=0"),
        (lambda: Score(window=-1), "window=-1"),
        (lambda: Score(decay=0.5, average=True), "give one of"),
    ],
)
def test_wrong_policies_are_named(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("policy", "split"),
    [
        (H2O(11), (0, 5, 6)),
        (H2O(10, sink_tokens=8), (8, 0, 2)),
        (H2O(10, sink_tokens=4), (4, 1, 5)),
        (H2O(0.2, sink_tokens=8), (8, 2, 10)),
        (H2O(0.04, sink_tokens=8), (3, 0, 1)),
        (H2O(heavy=0.05, recent=0.05, sink_tokens=8), (8, 0, 2)),
        (H2O(heavy=6, recent=0, sink_tokens=2), (2, 4, 0)),
        (Novelty(0.1, share=0.5, always_recent=0, sink_tokens=8), (8, 0, 2)),
        (Replay(0.2), (4, 11, 5)),
        (Replay(0.2, recent_share=0.5), (4, 6, 10)),
        (Replay(0.07), (4, 2, 1)),
        (Replay(0.05), (4, 0, 1)),
        (Replay(0.03), (2, 1, 0)),
        (TOVA(0.2), (0, 19, 1)),
        (ExpectedAttention(0.2), (4, 14, 2)),
        (ExpectedAttention(0.03), (2, 0, 1)),
        (TOVA(1), (0, 0, 1)),
        (Replay(9, recent_share=0, sink_tokens=0), (0, 9, 0)),
        (Replay(9, recent_share=1, sink_tokens=2), (2, 0, 7)),
    ],
    ids=str,
)
def test_recent_tokens_give_way_to_sink_tokens(policy: CachePolicy, split: tuple[int, int, int]) -> None:
    assert policy.split(100) == split


FRACTIONS: dict[str, Callable[[float], CachePolicy]] = {
    **{name: partial(make_policy, name) for name, kind in POLICIES.items() if kind.bounded},
    "h2o by heavy and recent": lambda share: H2O(heavy=share / 4, recent=3 * share / 4),
    "h2o by its recent": lambda share: H2O(share, recent=share / 4),
    "h2o by its recent with sinks": lambda share: H2O(share, recent=3 * share / 4, sink_tokens=9),
}


@pytest.mark.parametrize("name", FRACTIONS)
def test_a_fraction_fixed_in_tokens_splits_as_the_fraction_does(name: str) -> None:
    for share, tokens in [(0.002, 400), (0.01, 400), (0.02, 400), (0.7, 10), (0.25, 1000), (1.0, 3)]:
        policy = FRACTIONS[name](share)
        fixed = policy.with_fixed_budget(tokens)
        assert policy.is_fraction and not fixed.is_fraction
        assert isinstance(fixed.budget, int) and type(fixed) is type(policy)
        for later in (1, tokens, 100 * tokens):
            assert fixed.split(later) == policy.split(tokens)


def test_what_is_no_fraction_is_fixed_already() -> None:
    for policy in (Full(), Replay(5), H2O(64), H2O(heavy=10, recent=20)):
        assert policy.with_fixed_budget(100) is policy
    assert Replay(0.25).with_fixed_budget(400) == Replay(100)
    assert H2O(0.25).with_fixed_budget(400) == H2O(100), "as finished runs have stored it"


def test_a_whole_budget_is_heavy_and_recent_tokens() -> None:
    assert H2O(heavy=10, recent=20).whole_budget == 30
    assert H2O(heavy=0.25, recent=0.5).whole_budget == 0.75
    assert H2O(0.2, recent=0.1).whole_budget == Replay(0.2).whole_budget == 0.2


@pytest.mark.parametrize("name", FRACTIONS)
def test_another_budget_is_split_as_the_first_was(name: str) -> None:
    for share, other in [(0.2, 0.4), (0.4, 0.1), (0.8, 0.8)]:
        other_one = FRACTIONS[name](share).with_budget(other)
        assert other_one.split(1000) == FRACTIONS[name](other).split(1000)
        assert FRACTIONS[name](share).is_resized(other_one)


def test_another_budget_in_tokens_or_as_a_fraction() -> None:
    assert H2O(heavy=10, recent=30).with_budget(0.5) == H2O(0.5, recent=0.375)
    assert H2O(heavy=0.1, recent=0.3).with_budget(80) == H2O(80, recent=60)
    assert H2O(heavy=1, recent=2).with_budget(1) == H2O(1, recent=1)
    with pytest.raises(ValueError, match=r"budget=0: expected"):
        H2O(heavy=10, recent=30).with_budget(0)
    with pytest.raises(ValueError, match=r"budget=9: the full cache has none"):
        Full().with_budget(9)
