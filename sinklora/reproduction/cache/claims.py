"""What the measurements say of Fig. 6 (accuracy under a budget) and Table 5 (time)."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from sinklora.evaluate.paired_effects import Effect, effect
from sinklora.reproduction.cache.estimates import (
    RIVALS,
    chance_of,
    cluster_interval,
    clustered,
    paired,
    smaller_is_better,
)
from sinklora.reproduction.cache.study import PERPLEXITY, SMALL
from sinklora.reproduction.cache.text_study import NATS
from sinklora.reproduction.cache.verdict import percents
from sinklora.reproduction.names import CACHES
from sinklora.reproduction.report.claims import Claim, decide_equal, family, with_effect

NEAR = 0.05  # nats a token, or a share of the answers: so far from the full cache's counts as near it


def accuracy_claims(rows: pd.DataFrame, model: str, table: str) -> list[Claim]:
    """Whether H2O is better than its rivals at small budgets, and stays near the full cache, by measure.

    `rows`: one a measure, policy, budget and item, as the studies have them; of several budgets an item's
    mean counts, of several items of a document or passage theirs. A measure in which the full cache does no
    better than chance cannot be measured.
    """
    given = clustered(rows)
    claims: list[Claim] = []
    effects: dict[Claim, Effect] = {}
    for measure in dict.fromkeys(given.measure):
        claim = Claim("Fig. 6", "", "not decided", unit=_unit(measure), table=table, model=model)
        of_measure = given[given.measure == measure]
        asked = of_measure[of_measure.policy == "h2o"].budget.unique()
        budgets = sorted(budget for budget in asked if budget <= SMALL)
        where = f"{measure}, at {percents(budgets)} of the prompt"
        ahead = {rival: f"H2O is better than {CACHES[rival]} in {where}" for rival in RIVALS}
        near = f"H2O stays within {NEAR:g} of the full cache in {where}"
        if not budgets:
            reason = f"no budget of {100 * SMALL:g} % or less was measured"
            claims.append(replace(claim, sentence=f"H2O is better than Local in {measure}", reason=reason))
        elif not _measurable(of_measure, measure):
            reason = "the full cache does no better than chance"
            cannot = replace(claim, outcome="cannot be measured here", reason=reason)
            claims += [replace(cannot, sentence=sentence) for sentence in (ahead["local"], near)]
        else:
            present = set(of_measure.policy)
            for rival in RIVALS:
                if rival in present:
                    effects[replace(claim, sentence=ahead[rival])] = _lead(given, measure, rival, budgets)
            if "full" in present and not measure.endswith(NATS):
                found = _lead(given, measure, "full", budgets)
                equal = replace(claim, sentence=near, outcome=decide_equal(found, NEAR))
                claims.append(_counted(with_effect(equal, found), found))
    decided = zip(family(effects), effects.values(), strict=True)
    return [*(_counted(claim, found) for claim, found in decided), *claims]


def _counted(claim: Claim, found: Effect) -> Claim:
    return replace(claim, n=f"{found.documents} documents, passages or questions")


def _lead(rows: pd.DataFrame, measure: str, rival: str, budgets: Sequence[float]) -> Effect:
    """How much better H2O is than a rival, over clusters."""
    pairs = pd.concat(paired(rows, measure, "h2o", budget, rival) for budget in budgets)
    means = pairs.groupby("cluster").lead.mean()
    return effect(lambda lead: lead, means.to_numpy()[None])


def _measurable(rows: pd.DataFrame, measure: str) -> bool:
    full = rows[rows.policy == "full"]
    if full.empty or measure == PERPLEXITY:
        return True
    low, high = cluster_interval(full.value, full.cluster)
    chance = chance_of(measure, full)
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
