"""What the measurements say of Fig. 6 (accuracy under a budget) and Table 5 (time)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from sinklora.evaluate.generation_cost import OWN
from sinklora.evaluate.paired_effects import Effect, Values, effect
from sinklora.reproduction.cache.estimates import (
    RIVALS,
    chance_of,
    cluster_interval,
    clustered,
    paired,
    smaller_is_better,
)
from sinklora.reproduction.cache.generation_study import DECODING, SETTING, whole_seconds
from sinklora.reproduction.cache.study import PERPLEXITY, SMALL
from sinklora.reproduction.cache.text_study import NATS
from sinklora.reproduction.cache.verdict import percents
from sinklora.reproduction.names import CACHES
from sinklora.reproduction.report.claims import Claim, decide_equal, family, with_effect

NEAR = 0.05  # nats a token: so far from the full cache's counts as near it

LOST = 0.2  # of what the full cache answers beyond chance: so much less counts as near it

UNANSWERED = "neither cache does better than chance"


def accuracy_claims(rows: pd.DataFrame, model: str, table: str) -> list[Claim]:
    """Whether H2O is better than its rivals at small budgets, and stays near the full cache, by measure.

    `rows`: one a measure, policy, budget and item, as the studies have them; of several budgets an item's
    mean counts, of several items of a document theirs. A measure in which the full cache does no better than
    chance cannot be measured, nor a comparison of two caches neither of which does; both count in the
    correction all the same: it is of all that was compared. StreamingLLM is not in the paper: claims about it
    are ours, and so is how near rivals stay.
    """
    given = clustered(rows)
    claims: list[Claim] = []
    effects: dict[Claim, Effect] = {}
    for measure in dict.fromkeys(given.measure):
        claim = Claim("Fig. 6", "", "not decided", unit=_unit(measure), table=table, model=model)
        of_measure = given[given.measure == measure]
        asked = of_measure[of_measure.policy == "h2o"].budget.unique()
        budgets = sorted(budget for budget in asked if budget <= SMALL)
        if not budgets:
            reason = f"no budget of {100 * SMALL:g} % or less was measured"
            claims.append(replace(claim, sentence=f"H2O is better than Local in {measure}", reason=reason))
            continue
        where = f"{measure}, at {percents(budgets)} of the prompt"
        for rival in (name for name in RIVALS if name in set(of_measure.policy)):
            sentence = f"H2O is better than {CACHES[rival]} in {where}"
            against = replace(claim, sentence=sentence, restated=rival != "local")
            if reason := _unmeasurable(of_measure, measure, rival, budgets):
                against = replace(against, outcome="cannot be measured here", reason=reason)
            effects[against] = _lead(given, measure, "h2o", rival, budgets)
        claims += _near_claims(of_measure, measure, where, budgets, claim)
    decided = zip(family(effects), effects.values(), strict=True)
    return [*(_counted(claim, found) for claim, found in decided), *claims]


def _near_claims(
    rows: pd.DataFrame, measure: str, where: str, budgets: Sequence[float], claim: Claim
) -> Iterator[Claim]:
    """That H2O stays near the full cache, and whether its rivals do."""
    full = rows[rows.policy == "full"]
    if full.empty or measure.endswith(NATS):
        return
    chance = chance_of(measure, full)
    margin = NEAR if measure == PERPLEXITY else LOST * (full.value.mean() - chance)
    near_to = f"{NEAR:g} nats of" if measure == PERPLEXITY else f"{LOST:.0%} of the answers beyond chance of"
    for policy in (name for name in ("h2o", *RIVALS) if name in set(rows.policy)):
        sentence = f"{CACHES[policy]} stays within {near_to} the full cache in {where}"
        near = replace(claim, sentence=sentence, restated=policy != "h2o")
        if not _is_answered(rows, measure, "full", [1.0]):
            yield replace(near, outcome="cannot be measured here", reason=FULL_AT_CHANCE)
            continue
        found = _lead(rows, measure, policy, "full", budgets)
        equal = replace(near, outcome=decide_equal(found, margin))
        yield _counted(with_effect(equal, found), found)


FULL_AT_CHANCE = "the full cache does no better than chance"


def _unmeasurable(rows: pd.DataFrame, measure: str, rival: str, budgets: Sequence[float]) -> str:
    """Why H2O and a rival cannot be compared; empty where they can."""
    if not _is_answered(rows, measure, "full", [1.0]):
        return FULL_AT_CHANCE
    answered = [_is_answered(rows, measure, name, budgets) for name in ("h2o", rival)]
    return "" if any(answered) else UNANSWERED


def _counted(claim: Claim, found: Effect) -> Claim:
    return replace(claim, n=f"{found.documents} documents or questions")


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
    low, high = cluster_interval(own.value, own.cluster)
    chance = chance_of(measure, own)
    return bool(high < chance if smaller_is_better(measure) else low > chance)


def _unit(measure: str) -> str:
    if measure == PERPLEXITY:
        return "nats a token"
    return "nats an answer" if measure.endswith(NATS) else "of the answers"


def time_claims(costs: pd.DataFrame, new_tokens: int, batch: int, rounds: int) -> list[Claim]:
    """Whether H2O at 20 % saves time against the full cache of the same code: in decoding, and with the
    prompt before `new_tokens` tokens for each of `batch` rows. `costs` are those of `compare_caches`.
    """
    rows = costs.set_index("cache")
    h2o, full = (rows.loc[name].to_dict() for name in ("h2o 20%", "full (ours)"))
    faster = 100 * (h2o["decoded tokens/s"] / full["decoded tokens/s"] - 1)
    seconds = [row["prompt (s)"] + new_tokens * batch / row["decoded tokens/s"] for row in (h2o, full)]
    saved = 100 * (1 - seconds[0] / seconds[1])
    return [
        Claim(
            "Table 5",
            sentence,
            "held" if gain > 0 else "did not hold",
            float(gain),
            unit=unit,
            n=f"medians of {rounds} rounds",
            table="table5",
            restated=True,
        )
        for sentence, gain, unit in (
            (
                "decoding with H2O at 20 % is faster than with the full cache",
                faster,
                "% more tokens a second",
            ),
            (f"so is a prompt with {new_tokens} tokens after it", saved, "% less time"),
        )
    ]


def generation_claims(rows: pd.DataFrame, new_tokens: int, budget: float, model: str) -> list[Claim]:
    """Whether H2O saves time against transformers' cache, in each setting of `measure_generation`: prompt and
    `new_tokens` tokens a row together, which is what the paper times, and decoding alone.

    Held, or not, where every round says so.
    """
    blank = Claim("Table 5", "", "not decided", table="table5_real", model=model)
    claims = []
    for (batch, prompt), group in rows.groupby(SETTING, sort=False):
        own, h2o = (group[group.cache == name].sort_values("round") for name in (OWN, "h2o"))
        whole = [whole_seconds(found, new_tokens).to_numpy() for found in (h2o, own)]
        setting, at = f"{batch} × {prompt} tokens", f"with H2O at {budget:.0%}"
        total = f"{setting} and {new_tokens} more a row take less time {at}"
        decoding = f"behind {setting} decoding is faster {at}"
        faster = h2o[DECODING].to_numpy() / own[DECODING].to_numpy() - 1
        claims.append(
            _in_every_round(replace(blank, sentence=total, unit="% less time"), 1 - whole[0] / whole[1])
        )
        ours = replace(blank, sentence=decoding, unit="% more tokens a second", restated=True)
        claims.append(_in_every_round(ours, faster))
    return claims


def _in_every_round(claim: Claim, gains: Values) -> Claim:
    """A claim decided by whether every round gains, or none does; it estimates their median, in per cent."""
    low, middle, high = (float(100 * x) for x in np.quantile(gains, (0, 0.5, 1)))
    outcome = "held" if low > 0 else "did not hold" if high < 0 else "not decided"
    n = f"{len(gains)} rounds, {low:+.0f} to {high:+.0f} %"
    return replace(claim, outcome=outcome, estimate=middle, n=n)
