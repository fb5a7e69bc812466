"""The verdict on Fig. 5: what numbers worked by hand decide, and what they leave open."""

import pandas as pd
import pytest

from pass_keys_by_hand import pass_key_rows
from sinklora.reproduction.names import BASE
from sinklora.reproduction.retrieval.verdict import holds_to, longest, surely_better, verdict


def keys(right: int, of: int = 20) -> list[int]:
    return [1] * right + [0] * (of - right)


def measured(sf: dict[int, int], full: dict[int, int], of: int = 20) -> pd.DataFrame:
    """A base that answers up to 512 tokens, and so many right answers by length of the two patterns."""
    base = {tokens: of if tokens <= 512 else 0 for tokens in sf}
    found = {BASE: base, "full": full, "sf": sf}
    return pass_key_rows({m: {t: keys(n, of) for t, n in lengths.items()} for m, lengths in found.items()})


ALL = {512: 20, 1024: 20, 2048: 20, 4096: 0}


def test_reach_by_hand() -> None:
    rows = measured({512: 20, 1024: 8, 2048: 11, 4096: 0}, {512: 9, 1024: 20, 2048: 20, 4096: 0})
    assert (holds_to(rows, "sf"), longest(rows, "sf")) == (512, 2048)  # a gap ends "up to"
    assert (holds_to(rows, "full"), longest(rows, "full")) == (0, 2048)
    assert (holds_to(rows, BASE), longest(rows, BASE)) == (512, 512)
    said = verdict(rows, 2048, ["full", "sf"])
    assert said.endswith("base 512, full 0 (2048), sf 512 (2048); none beyond 2048.")
    longer = rows[rows.model != BASE].assign(model=lambda r: r.model + ", interpolated to 3072")
    said = verdict(pd.concat([rows, longer]), 2048, ["full", "sf"], 3072)
    assert said.endswith(
        "none beyond 2048. Interpolated to 3072 without training: full 0 (2048), sf 512 (2048)."
    )


def test_a_difference_must_be_sure_over_all_lengths() -> None:
    # Six pairs one way: p = 2 / 64, enough for one length and too little for two.
    six = {"full": {512: keys(20), 1024: keys(20)}, "sf": {512: keys(14), 1024: keys(20)}}
    rows = pass_key_rows(six)
    assert surely_better(rows[rows.tokens == 512], "full", "sf") == [512]
    assert surely_better(rows, "full", "sf") == surely_better(rows, "sf", "full") == []
    more = pass_key_rows(six, seed=1)
    assert surely_better(pd.concat([rows, more]), "full", "sf") == [512]
    based = measured(ALL, ALL)
    assert surely_better(based, "sf", BASE) == [1024, 2048]  # the base has no training seed to pair by


@pytest.mark.parametrize(
    ("sf", "full", "said"),
    [
        (ALL, ALL, "Held: "),
        ({**ALL, 4096: 20}, ALL, "Held: "),
        # 8 of 20 against 11 of 20 is no difference, and neither is surely half.
        ({**ALL, 1024: 8}, {**ALL, 1024: 11}, "Not decided (20 keys, 1 seed): "),
        # Nor are the same few keys a success: both fail where they were trained.
        ({**ALL, 2048: 2}, {**ALL, 2048: 2}, "Not decided (20 keys, 1 seed): "),
        ({**ALL, 2048: 0}, ALL, "Held in part: "),
        ({**ALL, 1024: 0, 2048: 0}, ALL, "Did not hold: "),
        # Past the trained context nobody is sure to retrieve, or full attention alone.
        ({**ALL, 4096: 8}, {**ALL, 4096: 11}, "Not decided (20 keys, 1 seed): "),
        (ALL, {**ALL, 4096: 20}, "Held in part: "),
    ],
)
def test_the_verdict_follows_what_is_sure(sf: dict[int, int], full: dict[int, int], said: str) -> None:
    assert verdict(measured(sf, full), 2048, ["full", "sf"]).startswith(said)


def test_the_verdict_names_the_lengths_that_decide() -> None:
    behind = measured({**ALL, 2048: 0}, ALL)
    assert "It is behind at 2048 tokens." in verdict(behind, 2048, ["full", "sf"])
    open_ones = measured({**ALL, 1024: 8, 2048: 9}, {**ALL, 1024: 11, 2048: 9})
    assert "Open at 1024, 2048 tokens." in verdict(open_ones, 2048, ["full", "sf"])
    assert "beyond the trained 1024: full, sf." in verdict(measured(ALL, ALL), 1024, ["full", "sf"])
    assert verdict(open_ones, 2048, ["sf"]).startswith("Not tested: ")
    twice = pd.concat([open_ones, open_ones[open_ones.model != BASE].assign(seed=1)])
    assert verdict(twice, 2048, ["full", "sf"]).startswith("Not decided (20 keys, 2 seeds): ")
