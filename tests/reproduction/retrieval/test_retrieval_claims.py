"""Fig. 5 and Table 4: what numbers worked by hand decide, and what they leave open."""

import pandas as pd
import pytest

from pass_keys_by_hand import pass_key_rows
from sinklora.evaluate.statistics import Accuracy
from sinklora.reproduction.names import BASE, UNTRAINED
from sinklora.reproduction.retrieval.claims import pass_key_claims, topic_claims
from sinklora.reproduction.retrieval.reach import holds_to, longest, reach_in_words


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
    said = reach_in_words(rows, 2048, ["full", "sf"])
    assert said.endswith("base 512, full 0 (2048), sf 512 (2048); none beyond 2048.")
    assert "beyond the trained 1024: full, sf." in reach_in_words(measured(ALL, ALL), 1024, ["full", "sf"])
    longer = rows[rows.model != BASE].assign(model=lambda r: r.model + ", interpolated to 3072")
    said = reach_in_words(pd.concat([rows, longer]), 2048, ["full", "sf"], 3072)
    assert said.endswith(
        "none beyond 2048. Interpolated to 3072 without training: full 0 (2048), sf 512 (2048)."
    )


@pytest.mark.parametrize(
    ("sf", "full", "outcomes"),
    [
        (ALL, ALL, ["held", "did not hold", "held"]),
        ({**ALL, 4096: 20}, ALL, ["held", "held", "held"]),
        ({**ALL, 4096: 11}, ALL, ["held", "not decided", "held"]),
        # As few as the base gives back.
        ({512: 20, 1024: 0, 2048: 0, 4096: 0}, ALL, ["not decided", "did not hold", "did not hold"]),
        ({**ALL, 2048: 19}, ALL, ["held", "did not hold", "held"]),  # 1 of 40 keys: within a tenth
        ({**ALL, 2048: 18}, ALL, ["held", "did not hold", "not decided"]),
        ({**ALL, 2048: 14}, ALL, ["held", "did not hold", "not decided"]),
        ({**ALL, 2048: 2}, ALL, ["held", "did not hold", "did not hold"]),
    ],
)
def test_pass_keys_decide(sf: dict[int, int], full: dict[int, int], outcomes: list[str]) -> None:
    claims = pass_key_claims(measured(sf, full), 512, 2048, "small")
    assert [claim.outcome for claim in claims] == outcomes
    assert claims[0].estimate == pytest.approx((sf[1024] + sf[2048]) / 40)
    assert claims[1].estimate == pytest.approx(sf[4096] / 20 - 0.5)
    assert claims[0].n == "1 seed × 40 keys" and "the trained 2048 tokens, at 4096" in claims[1].sentence


def test_training_is_compared_with_doing_nothing() -> None:
    nothing = measured(ALL, ALL)
    nothing = nothing[nothing.model == "full"].assign(model=UNTRAINED)
    claims = pass_key_claims(pd.concat([measured(ALL, ALL), nothing]), 512, 2048, "small")
    [claim] = [claim for claim in claims if "without training" in claim.sentence]
    assert claim.restated and claim.estimate == 0 and claim.outcome != "held", "all come back untrained"
    assert [claim for claim in claims if claim.headline] == [claim], "which the base cannot take from it"
    said = reach_in_words(pd.concat([measured(ALL, ALL), nothing]), 2048, ["sf"])
    assert f"base 512, {UNTRAINED} 2048, sf 2048" in said


def test_training_seeds_are_units_too() -> None:
    other = measured({**ALL, 2048: 0}, ALL)
    rows = pd.concat([measured(ALL, ALL), other[other.model != BASE].assign(seed=1)])
    claims = pass_key_claims(rows, 512, 2048, "small")
    assert claims[0].n == "2 seeds × 40 keys"
    assert claims[0].estimate == pytest.approx((1 + 1 / 2) / 2)
    assert claims[2].outcome == "not decided", "one seed lost half of the keys"


def test_models_that_were_not_asked_are_claimed_nothing_of() -> None:
    rows = measured(ALL, ALL)
    assert pass_key_claims(rows[rows.model != "sf"], 512, 2048, "small") == []
    alone = pass_key_claims(rows[rows.model == "sf"], 512, 4096, "small")
    assert alone == []


def test_where_only_longer_documents_were_asked_nothing_is_compared_up_to_the_context() -> None:
    rows = measured(ALL, ALL)
    [beyond] = pass_key_claims(rows[rows.tokens > 2048], 512, 2048, "small")
    assert "the trained 2048 tokens, at 4096" in beyond.sentence


@pytest.mark.parametrize(
    ("right", "outcome"),
    [(0, "cannot be measured here"), (40, "held"), (20, "did not hold"), (38, "not decided")],
)
def test_topics_decide(right: int, outcome: str) -> None:
    found = {"sf": {"short": Accuracy(right, 40)}, "base": {"short": Accuracy(40, 40)}}
    [claim] = topic_claims(found, {"short": 0.25}, "small")
    assert claim.outcome == outcome and claim.estimate == right / 40 and claim.n == "40 conversations"
    [without] = topic_claims({"base": found["base"]}, {"short": 0.25}, "small")
    assert (without.outcome, without.estimate) == ("cannot be measured here", None)
