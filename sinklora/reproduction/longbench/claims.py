"""What the scores say of Table 6 (LongBench)."""

from dataclasses import replace

import pandas as pd

from sinklora.evaluate.paired_effects import effect, within
from sinklora.reproduction.names import BASE
from sinklora.reproduction.report.claims import LOST, Claim, Tested, family
from sinklora.reproduction.retrieval.bounded_caches import CANNOT, FULL, claimed_leads

CACHES_APART = "LongBench through caches (ours)"  # the paper's Table 6 is about fine-tuned models

RIVALS = {"s2": "S²-Attn", BASE: "no fine-tuning"}


def tuning_claims(scores: pd.DataFrame, model: str, synthetic: bool) -> list[Claim]:
    """Whether fine-tuning with SF-Attn scores higher than with S²-Attn and than none, over data sets.

    `scores`: one a model and data set, as `scores_table` has them. Generated sets (`synthetic`) say nothing
    of LongBench.
    """
    claim = Claim("Table 6", "", "not decided", unit="points", table="longbench_scores", model=model)
    by_name = scores.assign(name=scores.model.str.replace(r", seed \d+$", "", regex=True))
    wide = by_name.pivot_table(index="dataset", columns="name", values="score")
    sentences = {
        rival: f"a model fine-tuned with SF-Attn scores higher on LongBench than with {words}"
        for rival, words in RIVALS.items()
    }
    if synthetic:
        reason = "the sets are generated ones, which are not LongBench"
        cannot = replace(claim, outcome="cannot be measured here", reason=reason)
        return [replace(cannot, sentence=sentence) for sentence in sentences.values()]
    counted = replace(claim, n=f"{len(wide)} data sets")
    effects: dict[Claim, Tested] = {
        replace(counted, sentence=sentence): effect(
            lambda lead: lead, (wide.sf - wide[rival]).to_numpy()[None]
        )
        for rival, sentence in sentences.items()
        if {"sf", rival} <= set(wide)
    }
    return family(effects)


def cache_claims(scores: pd.DataFrame, frame: pd.DataFrame, model: str) -> list[Claim]:
    """Whether one bounded cache scores higher than another (`LEADS`) and H2O as high as the full one, over
    documents.

    `scores`: one a question and cache (`question_scores`), `frame` that of `cache_table`, which says what can
    be measured, and what chance scores there: the full cache's own answers, each to another question.
    Which those are is read off the same answers, so that `n` says how many there are of how many.
    """
    usable = scores[~scores.dataset.isin(frame[frame.remark == CANNOT]["data set"])]
    claim = Claim(
        CACHES_APART, "", "not decided", unit="points", table="table6_real", model=model, restated=True
    )
    near = f"with H2O the score stays within {LOST:.0%} of what the full cache scores beyond chance"
    if usable.empty:
        reason = "with the full cache no set scores more than by chance"
        return [replace(claim, sentence=near, outcome="cannot be measured here", reason=reason)]
    wide = usable.pivot(index=["document", "question"], columns="cache", values="score")
    mean_leads = {
        pair: effect(
            lambda mean: mean, (wide[pair[0]] - wide[pair[1]]).groupby("document").mean().to_numpy()[None]
        )
        for pair in [("H2O", FULL), *claimed_leads(wide.columns)]
    }
    of_h2o = mean_leads.pop(("H2O", FULL))
    sets = f"{usable.dataset.nunique()} of {scores.dataset.nunique()} sets"
    claim = replace(claim, n=f"{of_h2o.documents} documents, {sets}")
    effects: dict[Claim, Tested] = {
        replace(claim, sentence=f"with {better} the score is higher than with {worse}"): lead
        for (better, worse), lead in mean_leads.items()
    }
    of_full = usable[usable.cache == FULL]
    by_chance = frame[frame.cache == FULL].set_index("data set").chance
    beyond = float((of_full.score - of_full.dataset.map(by_chance)).mean())
    effects[replace(claim, sentence=near)] = within(of_h2o, LOST * beyond)
    return family(effects)
