"""What the measurements say of Fig. 6 (accuracy under a budget)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from sinklora.evaluate.paired_effects import Effect, effect, within
from sinklora.reproduction.cache.cell_estimates import (
    RIVALS,
    chance_of,
    clustered,
    level_interval,
    paired,
    smaller_is_better,
)
from sinklora.reproduction.cache.study import PERPLEXITY, QUESTIONS, RECALL, RECALL_LATER, SMALL
from sinklora.reproduction.cache.text_study import NATS
from sinklora.reproduction.cache.verdict import percents
from sinklora.reproduction.names import CACHES
from sinklora.reproduction.report.claims import LOST, NEAR, Claim, Tested, family

UNANSWERED = "neither cache does better than chance"

FULL_AT_CHANCE = "the full cache does no better than chance"

COUNTED: Mapping[str, str] = {QUESTIONS: "question", RECALL: "trial", RECALL_LATER: "trial"}
"""The unit of a measure; of all others it is the document."""


def accuracy_claims(rows: pd.DataFrame, model: str, table: str, *, openbookqa: bool) -> list[Claim]:
    """Whether H2O is better than its rivals at small budgets, and stays near the full cache, by measure.

    `rows`: one a measure, policy, budget and item, as the studies have them; of several budgets an item's
    mean counts, of several items of a document theirs. A measure in which the full cache does no better than
    chance cannot be measured, nor a comparison of two caches neither of which does; both count in the
    correction (Holm) all the same: it is of all that was compared, leads and nearness together. The paper
    asks OpenBookQA alone (`openbookqa`: whether these questions are its), and without StreamingLLM: all else
    is ours, and so is how near rivals stay. The headline is that H2O stays near the full cache: in the
    paper's questions where the model is asked them, else in every measure.
    """
    clustered_rows = clustered(rows)
    asked_papers = openbookqa and QUESTIONS in set(clustered_rows.measure)
    unmeasured: list[Claim] = []
    leads: dict[Claim, Tested] = {}
    near: dict[Claim, Tested] = {}
    for measure in dict.fromkeys(clustered_rows.measure):
        claim = Claim("Fig. 6", "", "not decided", unit=_unit(measure), table=table, model=model)
        of_measure = clustered_rows[clustered_rows.measure == measure]
        asked = of_measure[of_measure.policy == "h2o"].budget.unique()
        budgets = sorted(budget for budget in asked if budget <= SMALL)
        if not budgets:
            reason = f"no budget of {100 * SMALL:g} % or less was measured"
            sentence = f"H2O is better than Local in {measure}"
            unmeasured.append(replace(claim, sentence=sentence, reason=reason))
            continue
        where = f"{measure}, at {percents(budgets)} of the prompt"
        papers = openbookqa and measure == QUESTIONS
        for rival in (name for name in RIVALS if name in set(of_measure.policy)):
            sentence = f"H2O is better than {CACHES[rival]} in {where}"
            against = replace(claim, sentence=sentence, restated=rival != "local" or not papers)
            if reason := _unmeasurable(of_measure, measure, rival, budgets):
                against = replace(against, outcome="cannot be measured here", reason=reason)
            lead = _lead(clustered_rows, measure, "h2o", rival, budgets)
            leads[replace(against, n=_counted(measure, lead))] = lead
        headline = papers or not asked_papers
        near |= _near_full(of_measure, measure, where, budgets, replace(claim, headline=headline), papers)
    return [*family(leads | near), *unmeasured]


def _near_full(
    rows: pd.DataFrame, measure: str, where: str, budgets: Sequence[float], claim: Claim, papers: bool
) -> dict[Claim, Tested]:
    """That H2O stays near the full cache, and whether its rivals do."""
    full = rows[rows.policy == "full"]
    near: dict[Claim, Tested] = {}
    if full.empty or measure.endswith(NATS):
        return near
    chance = chance_of(measure, full)
    margin = NEAR if measure == PERPLEXITY else LOST * (full.value.mean() - chance)
    near_to = f"{NEAR:g} nats of" if measure == PERPLEXITY else f"{LOST:.0%} of the answers beyond chance of"
    for policy in (name for name in ("h2o", *RIVALS) if name in set(rows.policy)):
        sentence = f"{CACHES[policy]} stays within {near_to} the full cache in {where}"
        ours = policy == "h2o"
        headline = claim.headline and ours
        stays = replace(claim, sentence=sentence, restated=not (ours and papers), headline=headline)
        if not _is_answered(rows, measure, "full", [1.0]):
            stays = replace(stays, outcome="cannot be measured here", reason=FULL_AT_CHANCE)
        lead = _lead(rows, measure, policy, "full", budgets)
        near[replace(stays, n=_counted(measure, lead))] = within(lead, margin)
    return near


def _unmeasurable(rows: pd.DataFrame, measure: str, rival: str, budgets: Sequence[float]) -> str:
    """Why H2O and a rival cannot be compared; empty where they can."""
    if not _is_answered(rows, measure, "full", [1.0]):
        return FULL_AT_CHANCE
    answered = [_is_answered(rows, measure, name, budgets) for name in ("h2o", rival)]
    return "" if any(answered) else UNANSWERED


def _counted(measure: str, lead: Effect) -> str:
    """How many of what: "8 documents", "250 questions"."""
    unit = COUNTED.get(measure, "document")
    return f"{lead.documents} {unit}" if lead.documents == 1 else f"{lead.documents} {unit}s"


def _lead(rows: pd.DataFrame, measure: str, policy: str, rival: str, budgets: Sequence[float]) -> Effect:
    """How much better a policy is than a rival, over clusters."""
    pairs = pd.concat(paired(rows, measure, policy, budget, rival) for budget in budgets)
    means = pairs.groupby("cluster").lead.mean()
    return effect(lambda lead: lead, means.to_numpy()[None])


def _is_answered(rows: pd.DataFrame, measure: str, policy: str, budgets: Sequence[float]) -> bool:
    """Whether a policy does better than chance in a measure, where chance is known."""
    own = rows[(rows.policy == policy) & rows.budget.isin(budgets)]
    if own.empty or measure == PERPLEXITY:
        return True
    _, low, high = level_interval(measure, own)
    chance = chance_of(measure, own)
    return bool(high < chance if smaller_is_better(measure) else low > chance)


def _unit(measure: str) -> str:
    if measure == PERPLEXITY:
        return "nats a token"
    return "nats an answer" if measure.endswith(NATS) else "of the answers"
