"""Claims of Table 5 are decided by the rounds' ratios, whatever slows a whole round."""

from collections.abc import Sequence

import pandas as pd
import pytest

from sinklora.evaluate.generation_cost import OWN
from sinklora.reproduction.cache.cost_claims import generation_claims, time_claims
from sinklora.reproduction.names import RANDOM
from sinklora.reproduction.report.verdict_rows import is_small

LOADS = (1.0, 3.0, 1.5, 1.0)  # what each round's seconds are slowed by

Rounds = Sequence[tuple[float, float]]  # seconds of the prompt, decoded tokens a second


def rounds_of(cache: str, rounds: Rounds) -> list[dict[str, object]]:
    return [
        {
            "cache": cache,
            "round": turn,
            "prompt (s)": prompt * load,
            "decoded tokens/s": speed / load,
        }
        for turn, ((prompt, speed), load) in enumerate(zip(rounds, LOADS, strict=False))
    ]


@pytest.mark.parametrize(
    ("prompt", "speed", "new_tokens", "outcomes", "estimates"),
    [
        # 2 rows: 4 + 20 / 40 against 2 + 20 / 20 seconds, then 4 + 200 / 40 against 2 + 200 / 20.
        (4.0, 40.0, 10, ["held", "did not hold"], [100.0, -50.0]),
        (4.0, 40.0, 100, ["held", "held"], [100.0, 25.0]),
        (2.0, 10.0, 10, ["did not hold", "did not hold"], [-50.0, -100 / 3]),
    ],
)
def test_time_is_saved_once_decoding_has_paid_for_the_prompt(
    prompt: float, speed: float, new_tokens: int, outcomes: list[str], estimates: list[float]
) -> None:
    """A load that comes and goes changes no ratio."""
    rounds = pd.DataFrame(
        rounds_of("full (ours)", [(2.0, 20.0)] * 4) + rounds_of("h2o 20%", [(prompt, speed)] * 4)
    )
    claims = time_claims(rounds, [new_tokens], batch=2)
    assert [claim.outcome for claim in claims] == outcomes
    assert [claim.estimate for claim in claims] == pytest.approx(estimates)
    assert [claim.n for claim in claims] == ["4 rounds"] * 2
    assert [claim.restated for claim in claims] == [True, False], "the paper times prompt and tokens together"


def test_each_number_of_tokens_is_claimed_by_itself() -> None:
    """What a prompt costs is paid for by what is written: 4 + n / 20 beside 2 + n / 10 seconds."""
    rounds = pd.DataFrame(
        rounds_of("full (ours)", [(2.0, 20.0)] * 4) + rounds_of("h2o 20%", [(4.0, 40.0)] * 4)
    )
    decoding, few, many = time_claims(rounds, [10, 100], batch=2)
    assert (few.outcome, many.outcome) == ("did not hold", "held")
    assert [claim.unit for claim in (few, many)] == [
        "% of the time saved with 10 tokens a row",
        "% of the time saved with 100 tokens a row",
    ]
    assert {claim.model for claim in (decoding, few, many)} == {RANDOM} and is_small(few)
    lines = rounds_of("full", [(2.0, 20.0)] * 4) + rounds_of("h2o", [(4.0, 40.0)] * 4)
    rows = pd.DataFrame(lines + rounds_of(OWN, [(2.0, 10.0)] * 4)).assign(batch=2, prompt=100)
    found = generation_claims(rows, [10, 100], 0.2, "a model")
    assert len(found) == 2 * 3 and [claim.outcome for claim in found[:2]] == ["did not hold", "held"]


def claims_of(h2o: Rounds) -> list[str]:
    """Outcomes beside a full cache of the same code; transformers' is twice as slow here."""
    lines = rounds_of("full", [(3.0, 20.0)] * len(h2o)) + rounds_of("h2o", h2o)
    rows = pd.DataFrame(lines + rounds_of(OWN, [(6.0, 10.0)] * len(h2o))).assign(batch=2, prompt=100)
    found = generation_claims(rows, [30], 0.2, "a model")
    assert [claim.restated for claim in found] == [False, True, True, True]
    assert [claim.sentence.split(" than with ")[1] for claim in found] == [
        "a full cache of the same code"
    ] * 2 + [OWN] * 2
    return [claim.outcome for claim in found[:2]]


@pytest.mark.parametrize(
    ("h2o", "outcomes"),
    [
        # 2 rows of 30 tokens beside 3 + 60 / 20 = 6 seconds: 4 + 60 / 60 = 5.
        ([(4.0, 60.0)] * 3, ["held", "held"]),
        ([(6.0, 60.0)] * 3, ["did not hold", "held"]),
        ([(4.0, 60.0), (6.0, 60.0), (4.0, 60.0)], ["not decided", "held"]),
        ([(3.0, 15.0), (3.0, 14.0), (3.0, 14.5)], ["did not hold", "did not hold"]),
        ([(4.0, 60.0)], ["not decided", "not decided"]),
    ],
)
def test_an_interval_over_rounds_decides(h2o: Rounds, outcomes: list[str]) -> None:
    assert claims_of(h2o) == outcomes


def test_ahead_in_every_round_is_not_yet_sure() -> None:
    """Three rounds that all gain, one of them hardly: by chance alone every fourth time."""
    assert claims_of([(3.0, 21.0), (3.0, 40.0), (3.0, 60.0)]) == ["not decided", "not decided"]


def test_the_interval_is_students_of_the_logarithms() -> None:
    lines = rounds_of(OWN, [(3.0, 20.0)] * 3) + rounds_of("h2o", [(3.0, 40.0), (3.0, 44.0), (3.0, 48.0)])
    lines += rounds_of("full", [(3.0, 20.0)] * 3)
    rows = pd.DataFrame(lines).assign(batch=1, prompt=100)
    same, transformers = generation_claims(rows, [30], 0.2, "a model")[1::2]
    assert same.estimate == transformers.estimate
    decoding = same
    # log 2, log 2.2, log 2.4: mean 0.78568, standard error 0.05266, t(2) = 4.3027.
    assert decoding.estimate == pytest.approx(119.4, abs=0.1)
    assert decoding.low == pytest.approx(74.9, abs=1.0) and decoding.high == pytest.approx(175.2, abs=1.5)
