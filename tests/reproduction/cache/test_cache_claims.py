"""Claims of Fig. 6 turn where their numbers do."""

from collections.abc import Mapping, Sequence

import pandas as pd
import pytest

from sinklora.reproduction.cache.claims import UNANSWERED, accuracy_claims
from sinklora.reproduction.cache.study import PERPLEXITY, QUESTIONS, RECALL, RECALL_LATER
from sinklora.reproduction.cache.text_study import FACTS, NATS
from sinklora.reproduction.report.claims import Claim

NOISE = [0.01 * (i % 5) for i in range(20)]

Values = Mapping[tuple[str, float], Sequence[float]]


def rows_of(measure: str, values: Values, clusters: int = 20) -> pd.DataFrame:
    """Items in turn of so many clusters; values by policy and budget."""
    return pd.DataFrame(
        {"measure": measure, "policy": policy, "budget": budget, "item": str(i), "value": float(value)}
        | {"cluster": str(i % clusters)}
        for (policy, budget), column in values.items()
        for i, value in enumerate(column)
    )


def nats(h2o: float, local: float, full: float = 2.0, budget: float = 0.2) -> pd.DataFrame:
    values = {("full", 1.0): full, ("h2o", budget): h2o, ("local", budget): local}
    return rows_of(PERPLEXITY, {key: [mean + noise for noise in NOISE] for key, mean in values.items()})


def claims_of(rows: pd.DataFrame, openbookqa: bool = True) -> list[Claim]:
    return accuracy_claims(rows, "some model", "fig6_values", openbookqa=openbookqa)


@pytest.mark.parametrize(
    ("h2o", "local", "outcomes"),
    [
        (2.01, 2.5, ["held", "held", "did not hold"]),
        (2.5, 2.04, ["did not hold", "did not hold", "held"]),
        (2.1, 2.5, ["held", "did not hold", "did not hold"]),
    ],
)
def test_h2o_is_ahead_of_local_and_near_the_full_cache(h2o: float, local: float, outcomes: list[str]) -> None:
    claims = claims_of(nats(h2o, local))
    assert [claim.outcome for claim in claims] == outcomes
    assert [claim.estimate for claim in claims] == pytest.approx([local - h2o, 2.0 - h2o, 2.0 - local])
    assert all(claim.restated for claim in claims), "the paper asks questions"
    assert claims[0].sentence == "H2O is better than Local in perplexity, at 20 % of the prompt"
    assert claims[0].unit == "nats a token" and claims[0].model == "some model"
    assert [claim.headline for claim in claims] == [False, True, False], "that H2O stays near the full cache"


def test_the_papers_questions_are_the_headline_where_they_are_asked() -> None:
    values = {("full", 1.0): 0.9, ("h2o", 0.2): 0.8, ("local", 0.2): 0.5}
    asked = rows_of(QUESTIONS, {key: [mean + noise for noise in NOISE] for key, mean in values.items()})
    rows = pd.concat([nats(2.5, 2.6), asked.assign(chance=0.25)])
    for openbookqa, measures in ((True, [QUESTIONS]), (False, [PERPLEXITY, QUESTIONS])):
        headlines = [claim.sentence for claim in claims_of(rows, openbookqa) if claim.headline]
        assert [sentence.split(" in ")[1].split(",")[0] for sentence in headlines] == measures
        assert all(sentence.startswith("H2O stays within") for sentence in headlines)


@pytest.mark.parametrize("openbookqa", [True, False])
def test_the_papers_own_sentences_are_of_h2o_local_and_openbookqa(openbookqa: bool) -> None:
    values = {("full", 1.0): 0.9, ("h2o", 0.2): 0.8, ("local", 0.2): 0.5, ("streaming", 0.2): 0.6}
    rows = rows_of(QUESTIONS, {key: [mean + noise for noise in NOISE] for key, mean in values.items()})
    rows["chance"] = 0.25
    own = [claim.sentence.split(" in ")[0] for claim in claims_of(rows, openbookqa) if not claim.restated]
    stays = "H2O stays within 20% of the answers beyond chance of the full cache"
    assert own == (["H2O is better than Local", stays] if openbookqa else [])


def test_a_lead_that_chance_may_give_decides_nothing() -> None:
    rows = nats(2.0, 2.0)
    local = (rows.policy == "local") & (rows.item.astype(int) % 2 == 0)
    rows.loc[local, "value"] += 0.1
    rows.loc[(rows.policy == "local") & ~local, "value"] -= 0.09
    assert claims_of(rows)[0].outcome == "not decided"


def test_the_unit_is_the_cluster_and_several_budgets_count_together() -> None:
    rows = pd.concat([nats(2.0, 2.4), nats(2.0, 2.2, budget=0.1).query("policy != 'full'")])
    claim = claims_of(rows.assign(cluster=(rows["item"].astype(int) % 4).astype(str)))[0]
    assert claim.sentence.endswith("at 10 %, 20 % of the prompt") and claim.estimate == pytest.approx(0.3)
    assert claim.n == "4 documents"


@pytest.mark.parametrize(
    ("measure", "n"),
    [
        (PERPLEXITY, "20 documents"),
        (FACTS, "20 documents"),
        (FACTS + NATS, "20 documents"),
        (QUESTIONS, "20 questions"),
        (RECALL, "20 trials"),
        (RECALL_LATER, "20 trials"),
    ],
)
def test_each_measure_counts_in_its_own_unit(measure: str, n: str) -> None:
    values = {("full", 1.0): [1.0] * 20, ("h2o", 0.2): [1.0] * 20, ("local", 0.2): [0.0] * 20}
    claims = claims_of(rows_of(measure, values).assign(chance=0.0))
    assert {claim.n for claim in claims} == {n}
    [one] = {claim.n for claim in claims_of(rows_of(measure, values, clusters=1).assign(chance=0.0))}
    assert one == n.replace("20", "1").removesuffix("s")


def test_how_near_a_cache_stays_is_of_the_same_family() -> None:
    """A lead with a p of 0.04 is decided beside nothing else, and not beside two that ask how near."""
    noise = [0.1 * (-1) ** i for i in range(20)]
    values = {("h2o", 0.2): [2.0] * 20, ("local", 0.2): [2.05 + x for x in noise]}
    [alone] = claims_of(rows_of(PERPLEXITY, values))
    assert alone.outcome == "held"
    near = claims_of(rows_of(PERPLEXITY, {("full", 1.0): [2.0 + 2 * x for x in noise], **values}))
    assert [claim.sentence.partition(" in ")[0] for claim in near] == [
        "H2O is better than Local",
        "H2O stays within 0.05 nats of the full cache",
        "Local stays within 0.05 nats of the full cache",
    ]
    assert [claim.outcome for claim in near] == ["not decided"] * 3


def test_a_claim_names_the_budgets_of_its_own_measure() -> None:
    asked = rows_of(
        QUESTIONS, {("full", 1.0): [1.0] * 20, ("h2o", 0.2): [1.0] * 20, ("local", 0.2): [0.0] * 20}
    )
    both = claims_of(pd.concat([nats(2.0, 2.4, budget=0.1), asked]))
    sentences = [claim.sentence for claim in both if "than Local" in claim.sentence]
    assert [sentence.partition(", at ")[2] for sentence in sentences] == [
        "10 % of the prompt",
        "20 % of the prompt",
    ]


def test_large_budgets_decide_nothing() -> None:
    [claim] = claims_of(nats(2.0, 3.0, budget=0.5))
    assert (claim.outcome, claim.reason) == ("not decided", "no budget of 20 % or less was measured")


@pytest.mark.parametrize(
    ("measure", "full", "measurable"),
    [
        (QUESTIONS, [1.0] * 15 + [0.0] * 5, True),
        (QUESTIONS, [1.0] * 5 + [0.0] * 15, False),  # a quarter of four choices
        (RECALL, [1.0] * 5 + [0.0] * 15, True),
    ],
)
def test_what_the_full_cache_cannot_do_is_not_measured(
    measure: str, full: list[float], measurable: bool
) -> None:
    rows = rows_of(measure, {("full", 1.0): full, ("h2o", 0.2): full, ("local", 0.2): [0.0] * 20})
    claims = claims_of(rows)
    assert [claim.outcome == "cannot be measured here" for claim in claims] == [not measurable] * 3
    if measurable:
        assert [claim.outcome for claim in claims[:2]] == ["held", "held"]
        assert claims[0].unit == "of the answers"


def test_two_caches_that_answer_nothing_are_not_compared() -> None:
    """Both are far worse than guessing, whichever of them is less so."""
    values = {("full", 1.0): [1.0] * 20, ("h2o", 0.2): [11.0] * 20, ("local", 0.2): [15.0] * 20}
    [claim] = claims_of(rows_of(FACTS + NATS, values).assign(chance=7.0))
    assert (claim.outcome, claim.reason) == ("cannot be measured here", UNANSWERED)
    values[("h2o", 0.2)] = [3.0] * 20
    assert claims_of(rows_of(FACTS + NATS, values).assign(chance=7.0))[0].outcome == "held"


def test_what_cannot_be_measured_counts_in_the_correction() -> None:
    """A lead whose p of 0.04 is decided alone, and not as one of three, whatever the other two are worth."""
    noise = [0.1 * (-1) ** i for i in range(20)]
    lead = 2.16 * 0.1 / 19**0.5
    values = {("h2o", 0.2): [2.0] * 20}
    alone = rows_of(PERPLEXITY, values | {("local", 0.2): [2.0 + lead + x for x in noise]})
    asked = {("full", 1.0): [1.0] * 20, ("h2o", 0.2): [11.0] * 20}
    asked |= {(name, 0.2): [11.0 + x for x in noise] for name in ("local", "streaming")}
    others = rows_of(FACTS + NATS, asked).assign(chance=7.0)
    assert claims_of(alone)[0].outcome == "held"
    together = claims_of(pd.concat([alone, others]))
    assert together[0].sentence == claims_of(alone)[0].sentence and together[0].outcome == "not decided"
    assert [c.outcome for c in together if "facts" in c.sentence] == ["cannot be measured here"] * 2


def test_near_is_a_part_of_what_is_answered_beyond_chance() -> None:
    """0.35 of four choices is 0.1 beyond chance: 0.02 less may be near, 0.04 is not."""
    full = [1.0] * 70 + [0.0] * 130

    def outcome(lost: int) -> str:
        h2o = [0.0] * lost + full[lost:]
        rows = rows_of(QUESTIONS, {("full", 1.0): full, ("h2o", 0.2): h2o}, clusters=200)
        [claim] = claims_of(rows)
        assert "20% of the answers beyond chance of the full cache" in claim.sentence
        return claim.outcome

    assert [outcome(0), outcome(4), outcome(16)] == ["held", "not decided", "did not hold"]


def test_fewer_nats_an_answer_are_better() -> None:
    rows = rows_of(
        FACTS + NATS, {("full", 1.0): [1.0] * 20, ("h2o", 0.2): [2.0] * 20, ("local", 0.2): [5.0] * 20}
    )
    [claim] = claims_of(rows.assign(chance=10.0))
    assert (claim.outcome, claim.estimate, claim.unit) == ("held", pytest.approx(3.0), "nats an answer")
    assert {c.outcome for c in claims_of(rows.assign(chance=0.5))} == {"cannot be measured here"}
