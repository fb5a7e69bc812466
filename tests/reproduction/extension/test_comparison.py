"""The comparison of context extensions: its arithmetic and its claims by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from measured import measured_rows
from sinklora.reproduction.extension.comparison import (
    NOT_VALID,
    losses,
    order_claims,
    table_claims,
)
from sinklora.reproduction.report.claims import Claim

PIECES = np.random.default_rng(0).normal(3, 0.5, 32)  # documents differ far more than models do


def matrix(*above: float) -> list[list[float]]:
    """Losses of 32 pieces for each seed: a document's own level and what the model adds."""
    return [(PIECES + nats).tolist() for nats in above]


def rows(**at_target: list[list[float]]) -> pd.DataFrame:
    """Models at 512 and 2048 tokens (0.5 lower there); the base in its own windows and with linear ones."""
    target = {"linear": matrix(0.9), "full": matrix(0.0, 0.01), **at_target}
    original = {name: (np.array(found) + 0.5).tolist() for name, found in target.items()}
    return measured_rows({512: {"base": matrix(0.3), **original}, 2048: target}, untrained=("base", "linear"))


HAND = rows(sf=matrix(0.1, 0.11), s2=matrix(0.2, 0.21), short=matrix(0.1, 0.11))


def test_losses_are_matrices_of_seeds_and_pieces() -> None:
    found = losses(HAND, "Table 1", 2048)
    assert {name: m.shape for name, m in found.by_method.items()} == {
        "base": (1, 32),
        "linear": (1, 32),
        "full": (2, 32),
        "sf": (2, 32),
        "s2": (2, 32),
        "short": (2, 32),
    }
    order = np.argsort([f"p{place}" for place in range(32)])
    np.testing.assert_allclose(found.by_method["sf"][1], PIECES[order] + 0.11)
    np.testing.assert_allclose(found.by_method["base"][0], PIECES[order] + 0.3)
    np.testing.assert_allclose(found.perplexities("sf"), np.exp(PIECES.mean() + np.array([0.1, 0.11])))


def test_a_lead_is_paired() -> None:
    lead = losses(HAND, "Table 1", 2048).lead("sf", "s2")
    assert (lead.estimate, lead.low, lead.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_share_of_the_improvement_is_of_perplexities() -> None:
    one = rows(sf=matrix(0.1), full=matrix(0.0))
    share = losses(one, "Table 1", 2048).share("sf", "linear")
    assert share.estimate == pytest.approx((math.exp(0.9) - math.exp(0.1)) / (math.exp(0.9) - 1))
    assert losses(one, "Table 1", 2048).share("full", "linear").estimate == 1


def test_what_was_not_measured_is_named() -> None:
    with pytest.raises(ValueError, match="test_set='B'"):
        losses(HAND, "B", 2048)
    with pytest.raises(ValueError, match="context=4096"):
        losses(HAND, "Table 1", 4096)
    missing = HAND.drop(HAND[(HAND.method == "sf") & (HAND.seed == 1) & (HAND.piece == "p3")].index)
    with pytest.raises(ValueError, match="method='sf': not measured on every piece"):
        losses(missing, "Table 1", 2048)


def claims(given: pd.DataFrame, valid: bool = True) -> dict[str, Claim]:
    made = table_claims(given, "Table 1", 512, 2048, "base", valid=valid, model="small")
    return {claim.sentence: claim for claim in made}


BETTER_CONTEXT = "with SF-Attn 2048 tokens of context are better than 512, read by it or by the base"

SHARE = "brings {} of full attention's improvement on {}, within 5 points"


def test_the_claims_follow_the_numbers() -> None:
    made = claims(HAND)
    assert made["SF-Attn is better than S²-Attn without the leak"].outcome == "held"
    assert made["SF-Attn is better than S²-Attn without the leak"].estimate == pytest.approx(0.1)
    none = "fine-tuning with SF-Attn is better than none (the base in its own windows)"
    assert made[none].estimate == pytest.approx(0.195)
    assert made["full attention is better than SF-Attn"].outcome == "held"
    assert made["full attention is better than SF-Attn"].estimate == pytest.approx(0.1)
    assert made["SF-Attn is better than windows alone"].outcome == "not decided"
    assert claims(rows(sf=matrix(0.3, 0.31), s2=matrix(0.2, 0.21)))[
        "SF-Attn is better than S²-Attn without the leak"
    ].outcome == ("did not hold")


def test_longer_context_has_to_beat_the_base_in_its_own_windows_too() -> None:
    """SF-Attn's model gains 0.5 nats on itself; 0.2 on the base, or loses 0.1 to it. Or it is far better than
    the base, and loses 0.1 to itself in shorter windows.
    """
    held = claims(rows(sf=matrix(0.1, 0.1)))[BETTER_CONTEXT]
    assert (held.outcome, held.estimate) == ("held", pytest.approx(0.2))
    lost = claims(rows(sf=matrix(0.4, 0.4)))[BETTER_CONTEXT]
    assert (lost.outcome, lost.estimate) == ("did not hold", pytest.approx(-0.1))
    far = rows(sf=matrix(-2.0, -2.0))
    far.loc[(far.method == "sf") & (far.context == 512), "nll"] -= 0.6
    itself = claims(far)[BETTER_CONTEXT]
    assert (itself.outcome, itself.estimate) == ("did not hold", pytest.approx(-0.1))


def against_linear(given: pd.DataFrame) -> dict[str, Claim]:
    """The claims where validation says that untrained linear positions are the best of no training."""
    made = table_claims(given, "Table 1", 512, 2048, "linear", valid=True, model="small")
    return {claim.sentence: claim for claim in made}


AGAINST_BASE = "longer positions and full attention are together better than the base in its own windows"


def test_training_is_held_against_the_untouched_base_too() -> None:
    """Linear ones lose 0.9 nats to full attention, the base in its own windows 0.3."""
    made = against_linear(HAND)
    assert (made[AGAINST_BASE].outcome, made[AGAINST_BASE].estimate) == ("held", pytest.approx(0.295))
    assert made["SF-Attn " + SHARE.format("92%", "linear")].outcome != "not decided"


def test_training_is_better_than_none_where_it_beats_the_untouched_base_too() -> None:
    """On untrained linear positions 0.8 nats are gained; on the base in its own windows 0.2, or 0.1 lost."""
    sentence = "fine-tuning with SF-Attn is better than none (linear, and the base in its own windows)"
    both = against_linear(rows(sf=matrix(0.1, 0.1)))[sentence]
    assert (both.outcome, both.estimate) == ("held", pytest.approx(0.2))
    one = against_linear(rows(sf=matrix(0.4, 0.4)))[sentence]
    assert (one.outcome, one.estimate) == ("did not hold", pytest.approx(-0.1))


def test_no_share_is_decided_where_full_attention_loses_to_the_untouched_base() -> None:
    made = against_linear(rows(full=matrix(0.4, 0.41), sf=matrix(0.5, 0.51), s2=matrix(0.6, 0.61)))
    assert made[AGAINST_BASE].outcome == "did not hold"
    share = made["SF-Attn " + SHARE.format("92%", "linear")]
    assert share.outcome == "not decided" and "not surely better than the base" in share.reason


def above(share: float) -> list[list[float]]:
    """Losses that bring such a share of full attention's improvement on the base, 0.3 nats above it."""
    return matrix(math.log(1 + (1 - share) * (math.exp(0.3) - 1)))


def test_what_full_attention_has_in_the_old_context_too_stands_beside_the_shares() -> None:
    """Full attention improves on the base by 0.3 nats in 2048 tokens; in 512 by 0.1, by more, or by none."""
    given, known = rows(full=matrix(0.0), sf=above(0.9)), {}
    for name, gap in {"some": 0.2, "all": -0.1, "none": 0.3}.items():
        given.loc[(given.method == "full") & (given.context == 512), "nll"] = PIECES + gap
        known[name] = claims(given)["SF-Attn " + SHARE.format("92%", "base")].unit
    old = f"{(math.exp(0.3) - math.exp(0.2)) / (math.exp(0.3) - 1):.0%}"
    unit = "of the improvement in perplexity on base, of which full attention has {} in 512 tokens too"
    assert known == {
        name: unit.format(much) for name, much in {"some": old, "all": "all", "none": "none"}.items()
    }


def test_lacking_little_needs_the_whole_interval() -> None:
    sentence = "SF-Attn lacks no more than 20% of that improvement"
    assert claims(rows(full=matrix(0.0), sf=above(0.9)))[sentence].outcome == "held"
    assert claims(rows(full=matrix(0.0), sf=above(0.7)))[sentence].outcome == "did not hold"
    assert claims(rows(full=matrix(0.0), sf=above(1.3)))[sentence].outcome == "held", "more is not less"


def test_the_published_shares_are_judged_by_their_distance() -> None:
    made = table_claims(
        rows(full=matrix(0.0), sf=above(0.9), s2=above(0.6)),
        "Table 1",
        512,
        2048,
        "base",
        valid=True,
        model="",
    )
    first, second = made[:2]
    assert first.sentence == "SF-Attn " + SHARE.format("92%", "base")
    assert (first.outcome, first.item, first.restated) == ("held", "Table 1", True)
    assert first.estimate == pytest.approx(0.9) and first.headline and not second.headline
    assert second.sentence == "S²-Attn without the leak " + SHARE.format("39%", "base")
    assert (second.outcome, second.item, second.restated) == ("did not hold", "Table 1", True)


def test_shares_are_of_the_same_family() -> None:
    """A share that is near the published one with a p of about 0.03: sure alone, not beside a lead of 0."""
    noise = np.array([-1, 1] * 16) * 0.046
    brought = [(np.array(above(0.92)[0]) + noise).tolist()]
    target = {"full": matrix(0.0), "sf": brought, "short": brought}
    original = {"base": matrix(0.3), "full": matrix(0.5), "sf": matrix(0.5), "short": matrix(0.5)}
    given = measured_rows({512: original, 2048: target}, untrained=("base",))
    found = losses(given, "Table 1", 2048).share_within("sf", "base", 0.87, 0.97)
    assert 0.025 < found.p < 0.05 and found.holds
    made = table_claims(given, "Table 1", 512, 2048, "base", valid=True, model="")
    assert (made[0].estimate, made[0].low) == (found.effect.estimate, found.effect.low)
    assert made[-1].outcome == made[0].outcome == "not decided"
    without = given[given.method != "short"]
    assert table_claims(without, "Table 1", 512, 2048, "base", valid=True, model="")[0].outcome == "held"


def test_a_recipe_that_does_not_count_decides_nothing() -> None:
    made = claims(HAND, valid=False)
    assert {claim.outcome for claim in made.values()} == {"not decided"}
    assert {claim.reason for claim in made.values()} == {NOT_VALID}
    assert table_claims(rows(), "Table 1", 512, 2048, "base", valid=True, model="small") == []


def test_orders_are_claimed_pair_by_pair() -> None:
    blank = Claim("Table 7", "", "not decided")
    pairs = [("sf", "s2"), ("s2", "short"), ("sf", "absent")]
    made = order_claims(losses(HAND, "Table 1", 2048), pairs, {"sf": "A", "s2": "B", "short": "C"}, blank)
    assert [(claim.sentence, claim.outcome) for claim in made] == [
        ("A is better than B", "held"),
        ("B is better than C", "did not hold"),
    ]


def test_a_method_of_which_nothing_can_be_said_is_not_compared() -> None:
    blank, labels = Claim("Table 8", "", "not decided"), {"sf": "A", "s2": "B", "short": "C"}
    pairs, why = [("sf", "s2"), ("s2", "short")], {"short": "it was not trained"}
    first, second = order_claims(losses(HAND, "Table 1", 2048), pairs, labels, blank, why)
    assert (first.outcome, first.reason) == ("held", "")
    assert (second.outcome, second.reason) == ("cannot be measured here", "C: it was not trained")
