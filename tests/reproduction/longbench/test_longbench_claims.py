"""Claims of Table 6 turn where their scores do, and generated sets claim nothing of LongBench."""

import pandas as pd
import pytest

from sinklora.reproduction.longbench.claims import cache_claims, tuning_claims
from sinklora.reproduction.retrieval.bounded_caches import CANNOT, REPLAY


def tuned(sf: float, s2: float) -> pd.DataFrame:
    """Scores on eight data sets: a base at 10, and so much more with either pattern."""
    return pd.DataFrame(
        {"model": model, "dataset": f"set {number}", "score": 10 + more + number}
        for model, more in (("base", 0.0), ("s2, seed 0", s2), ("sf, seed 0", sf - 1), ("sf, seed 1", sf + 1))
        for number in range(8)
    )


@pytest.mark.parametrize(
    ("sf", "s2", "outcomes"),
    [
        (5.0, 3.0, ["held", "held"]),
        (5.0, 6.0, ["did not hold", "held"]),
        (-1.0, -2.0, ["held", "did not hold"]),
    ],
)
def test_tuning_decides_over_data_sets(sf: float, s2: float, outcomes: list[str]) -> None:
    claims = tuning_claims(tuned(sf, s2), "some model", synthetic=False)
    assert [claim.outcome for claim in claims] == outcomes
    assert [claim.estimate for claim in claims] == pytest.approx([sf - s2, sf])
    assert claims[0].n == "8 data sets"


def test_generated_sets_say_nothing_of_longbench() -> None:
    claims = tuning_claims(tuned(5.0, 3.0), "some model", synthetic=True)
    assert {claim.outcome for claim in claims} == {"cannot be measured here"} and len(claims) == 2


def cached(**scores: list[float]) -> pd.DataFrame:
    """Two questions a document, with the same score."""
    return pd.DataFrame(
        {"dataset": "qasper", "document": f"{i}", "question": f"{i}/{q}", "cache": cache, "score": score}
        for cache, values in scores.items()
        for i, score in enumerate(values)
        for q in range(2)
    )


def frame_of(remark: str = "", chance: float = 0.0) -> pd.DataFrame:
    """What `cache_table` says of the one data set."""
    return pd.DataFrame({"data set": ["qasper"], "cache": ["full"], "remark": [remark], "chance": [chance]})


def test_caches_decide_over_documents() -> None:
    scores = cached(full=[50.0, 60, 70, 80], H2O=[49.0, 61, 69, 79], Local=[20.0, 30, 50, 40])
    ahead, near = cache_claims(scores, frame_of(), "some model")
    assert (ahead.outcome, ahead.estimate, ahead.n) == (
        "held",
        pytest.approx(29.5),
        "4 documents, 1 of 1 sets",
    )
    assert (near.outcome, near.estimate) == ("held", pytest.approx(-0.5))
    far = scores.assign(score=scores.score.where(scores.cache != "H2O", 0.0))
    assert [claim.outcome for claim in cache_claims(far, frame_of(), "x")] == ["did not hold", "did not hold"]
    ours = pd.concat([scores, cached(**{REPLAY: [52.0, 63, 73, 82]})])
    [_, lead, _] = cache_claims(ours, frame_of(), "some model")
    assert lead.sentence == f"with {REPLAY} the score is higher than with H2O"
    assert (lead.outcome, lead.estimate) == ("held", pytest.approx(3.0))
    [cannot] = cache_claims(scores, frame_of(CANNOT), "some model")
    assert cannot.outcome == "cannot be measured here"


@pytest.mark.parametrize(
    ("behind", "chance", "outcome"),
    [(12.0, 0.0, "held"), (14.0, 0.0, "did not hold"), (4.0, 40.0, "held"), (6.0, 40.0, "did not hold")],
)
def test_a_fifth_of_what_is_beyond_chance_is_near(behind: float, chance: float, outcome: str) -> None:
    """The full cache scores 65: 13 are a fifth of it, and 5 of what it scores beyond a chance of 40."""
    scores = cached(full=[50.0, 60, 70, 80], H2O=[at - behind for at in (50.1, 59.9, 70.1, 79.9)])
    [near] = cache_claims(scores, frame_of(chance=chance), "some model")
    assert (near.outcome, near.estimate) == (outcome, pytest.approx(-behind))
