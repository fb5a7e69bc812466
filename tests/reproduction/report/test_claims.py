"""Claims: decided from effects, told by one template, written and read back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sinklora.evaluate.paired_effects import Effect, difference, within
from sinklora.records.files import write_json
from sinklora.reproduction.report.claims import (
    Claim,
    claims_to_json,
    combined,
    decide,
    deciding,
    family,
    read_claims,
    together,
    told,
    with_effect,
)
from sinklora.reproduction.report.pages import in_short

BETTER = Claim("Table 1", "SF-Attn is better than S²-Attn", "not decided", unit="nats a token", model="small")


def effect_of(estimate: float, half: float, p: float) -> Effect:
    """An effect of many degrees of freedom, with the half width of its 95 % interval."""
    ends = (estimate - half, estimate + half, estimate - 0.84 * half, estimate + 0.84 * half)
    return Effect(estimate, *ends, p, 5, 64, error=half / 1.96)


@pytest.mark.parametrize(
    ("estimate", "p", "outcome"),
    [
        (0.3, 0.01, "held"),
        (-0.3, 0.01, "did not hold"),
        (0.3, 0.05, "not decided"),
        (0.3, float("nan"), "not decided"),
    ],
)
def test_a_difference_is_decided_by_its_p_value(estimate: float, p: float, outcome: str) -> None:
    assert decide(effect_of(estimate, 0.1, p)) == outcome


@pytest.mark.parametrize(
    ("estimate", "half", "outcome"),
    [
        (0.0, 0.009, "held"),
        (0.005, 0.02, "not decided"),
        (0.03, 0.01, "did not hold"),
        (-0.03, 0.01, "did not hold"),
    ],
)
def test_equality_needs_its_margin(estimate: float, half: float, outcome: str) -> None:
    tested = within(effect_of(estimate, half, 0.5), margin=0.01)
    assert decide(tested) == outcome
    assert [claim.outcome for claim in family({BETTER: tested})] == [outcome]


def test_a_family_is_corrected_together() -> None:
    other = Claim("Table 1", "a longer context helps", "not decided")
    claims = family({BETTER: effect_of(0.3, 0.1, 0.03), other: effect_of(0.3, 0.1, 0.03)})
    assert [claim.outcome for claim in claims] == ["not decided", "not decided"]
    assert family({BETTER: effect_of(0.3, 0.1, 0.03)})[0].outcome == "held"
    equal = within(effect_of(0.0, 0.0118, 1.0), margin=0.01)
    assert equal.p == pytest.approx(0.048, abs=0.002), "sure alone, not beside another"
    assert family({other: equal})[0].outcome == "held"
    both = family({BETTER: effect_of(0.3, 0.1, 0.001), other: equal})
    assert [claim.outcome for claim in both] == ["held", "held"], "the surer one comes first"
    both = family({BETTER: effect_of(0.3, 0.1, 0.04), other: equal})
    assert [claim.outcome for claim in both] == ["not decided", "not decided"]
    reasoned = Claim("Table 1", "x", "not decided", reason="the recipe is not valid")
    assert family({reasoned: effect_of(0.3, 0.1, 0.001)})[0].outcome == "not decided"


def test_several_outcomes_of_one_sentence() -> None:
    assert combined(["held", "held"]) == "held"
    assert combined(["held", "did not hold"]) == "held in part"
    assert combined(["held", "not decided"]) == "held in part"
    assert combined(["not decided", "did not hold"]) == "did not hold", "all of it can no longer hold"
    assert combined(["not decided", "not decided"]) == "not decided"
    assert combined(["held", "cannot be measured here"]) == "held"
    assert combined([]) == "cannot be measured here"


SHARE = Claim("Table 1", "SF-Attn brings 92 %", "did not hold", headline=True)
EASIER = Claim("Table 1", "SF-Attn is better than S²-Attn", "held")
OURS = Claim("Table 1", "full attention is better still", "held", restated=True)


def test_the_headline_decides_an_item() -> None:
    """Easier sentences beside it do not turn it into a part of what held."""
    assert together([EASIER, OURS, SHARE]) == "did not hold"
    assert together([EASIER, replace(SHARE, outcome="not decided")]) == "not decided"
    other = replace(SHARE, outcome="held", model="another model")
    assert together([SHARE, other, OURS]) == "held in part", "a headline for each model"


def test_without_a_headline_the_papers_sentences_decide() -> None:
    lost = replace(EASIER, sentence="at 20 %", outcome="did not hold")
    assert together([replace(OURS, outcome="did not hold"), EASIER]) == "held"
    assert together([EASIER, lost, OURS]) == "held in part"
    assert together([OURS]) == "held" and together([]) == ""
    assert deciding([OURS, EASIER, lost]) == [EASIER, lost], "the first of them is shown"


def test_a_ratio_has_no_sign_and_a_difference_has() -> None:
    ratio = Claim("Fig. 1", "it takes twice", "held", 2.5, 2.0, 3.0, "times, mean over lengths")
    assert told(ratio) == "Held: it takes twice: 2.5 (95 % interval 2 to 3) times, mean over lengths."
    assert in_short(ratio) == "2.5 (2 to 3) times, mean over lengths"
    assert in_short(replace(ratio, unit="nats")) == "+2.5 (+2 to +3) nats"


def test_a_claim_is_told_in_one_line() -> None:
    [claim] = family({BETTER: effect_of(0.3, 0.1, 0.001)})
    assert told(claim) == (
        "Held: SF-Attn is better than S²-Attn: +0.3 (95 % interval +0.2 to +0.4) nats a token, "
        "5 seeds × 64 documents."
    )
    assert told(
        Claim("Fig. 8", "a figure", "cannot be measured here", reason="needs a GPU", restated=True)
    ) == ("Cannot be measured here (in our words): a figure; needs a GPU.")


def test_claims_are_read_as_they_were_written(tmp_path: Path) -> None:
    single = with_effect(BETTER, difference(np.ones((2, 1)), np.zeros((2, 1))))
    assert single.low is None and single.estimate == 1 and single.n == "2 seeds × 1 documents"
    counted = with_effect(replace(BETTER, n="8 documents"), difference(np.ones((1, 8)), np.zeros((1, 8))))
    assert counted.n == "8 documents"
    write_json(tmp_path / "02.json", claims_to_json([single]))
    write_json(tmp_path / "01.json", claims_to_json([BETTER]))
    assert read_claims(tmp_path) == [BETTER, single]
    assert read_claims(tmp_path / "none") == []


def test_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="outcome='yes': expected one of held, held in part"):
        Claim("Table 1", "x", "yes")


def test_what_does_not_vary_has_no_interval() -> None:
    same = difference(np.full((1, 8), 2.0), np.full((1, 8), 1.5))
    claim = with_effect(BETTER, same)
    assert (claim.estimate, claim.low, claim.high) == (0.5, None, None)
    varied = with_effect(BETTER, effect_of(0.5, 0.1, 0.001))
    assert (varied.low, varied.high) == (0.4, 0.6)


def test_what_has_no_number_is_told_by_what_it_was_counted_on() -> None:
    assert in_short(replace(BETTER, outcome="held", n="by definition: 4 heads")) == "by definition: 4 heads"
    assert in_short(replace(BETTER, outcome="held")) == "held"
