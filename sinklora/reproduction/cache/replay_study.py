"""Replay beside published policies, at equal budgets: after prompts of several lengths, with several draws of
facts; and its own simpler forms, in which fewer heads share their slots.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from sinklora.cache.attention_scores import Score
from sinklora.cache.expected_attention import ExpectedAttention
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy, make_policy
from sinklora.cache.replay import Replay
from sinklora.cache.snapkv import SnapKV
from sinklora.evaluate.fact_templates import TEMPLATES
from sinklora.evaluate.paired_effects import Effect, Equivalence, effect, ratio_within
from sinklora.records.checks import Count, Distinct, check_among, check_fields
from sinklora.records.tables import Column, Estimate, Table
from sinklora.reproduction.cache.cell_estimates import chance_of, clustered, differences, estimates, paired
from sinklora.reproduction.cache.second_pass import SecondPass
from sinklora.reproduction.cache.study import PERPLEXITY, published_policies
from sinklora.reproduction.cache.text_study import (
    FACTS,
    FACTS_LATER,
    TextKind,
    TextStudy,
    measure_text,
)
from sinklora.reproduction.cache.verdict import percents
from sinklora.reproduction.names import CACHES
from sinklora.reproduction.report.claims import LOST, NEAR, Claim, Tested, family
from sinklora.train.sources import CorpusSpec

ITEM = "Replay (ours)"

OLD = ("h2o", "streaming", "local")  # what Replay is to replace

FORMS = {"replay_layer": "layer", "replay_head": "head"}  # names of those that share less: Replay's `share`

# Others' scores with slots shared as Replay shares them: what is left of its lead is not owed to the sharing.
# Sharing within a layer is published (Ada-SnapKV); kvpress adds 0.01 to Expected Attention where heads share.
SHARED_RIVALS: dict[str, Callable[[float], CachePolicy]] = {
    "snapkv_layer": partial(SnapKV, share="layer"),
    "snapkv_model": partial(SnapKV, share="model"),
    "expected_attention_layer": partial(ExpectedAttention, share="layer", epsilon=0.01),
    "expected_attention_model": partial(ExpectedAttention, share="model", epsilon=0.01),
}

TWICE = "second_pass"

DECAYED = "h2o_decayed"  # such sums are a part of Replay's scores

LONG_RIVALS = ("snapkv_model",)  # those of the others that are measured after long prompts too

PROMPT = "prompt"

MEASURES = (PERPLEXITY, FACTS_LATER, FACTS)


@dataclass(frozen=True)
class LongPrompt:
    """Prompts of so many `tokens`, which take their time: perplexity after `passages` of them, and of the
    first `draws` of a study's seeds (of all, where it has fewer) so many `facts` in each of `fact_passages`.
    """

    tokens: Count
    passages: Count = 64
    draws: Count = 1
    fact_passages: Count = 32
    facts: Annotated[int, Field(ge=1, le=len(TEMPLATES))] = 4

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class ReplayStudy:
    """`text` after each of `prompts` tokens, in which facts are planted anew for each of `seeds`.

    All draws of facts are asked for after eviction, the first one together with its passage as well.
    `budgets` are fractions of a prompt, of Replay and of those that it is to replace (`OLD`); all others are
    measured at `other_budgets`, which are some of them. After `long_prompts` Replay, `OLD` and `LONG_RIVALS`
    are measured at `other_budgets` alone (where there are none: `budgets`), and facts asked for only later.
    Raises TypeError or ValueError naming the field.
    """

    text: TextStudy
    corpus: CorpusSpec
    prompts: tuple[Count, ...]
    seeds: Distinct[int]
    budgets: Distinct[float]
    other_budgets: tuple[float, ...] = ()
    long_prompts: tuple[LongPrompt, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"long_prompts: prompts of {self.lengths} tokens; give each length once")
        if not self.lengths:
            raise ValueError("prompts=(): give a length, here or in long_prompts")
        check_among("other_budgets", self.other_budgets, "budgets", self.budgets)

    @property
    def lengths(self) -> tuple[int, ...]:
        """All lengths of prompts (tokens), the long ones last."""
        return (*self.prompts, *(long.tokens for long in self.long_prompts))

    def texts(self) -> Iterator[TextStudy]:
        """What is measured, a draw of facts after a length of prompt at a time."""
        for tokens in self.prompts:
            text = replace(self.text, prompt_tokens=tokens, fact_tokens=tokens)
            for number, seed in enumerate(self.seeds):
                yield replace(text, seed=seed, facts_at_once=number == 0)
        for long in self.long_prompts:
            text = replace(self.text, prompt_tokens=long.tokens, fact_tokens=long.tokens, facts_at_once=False)
            text = replace(text, passages=long.passages, fact_passages=long.fact_passages, facts=long.facts)
            for seed in self.seeds[: long.draws]:
                yield replace(text, seed=seed)

    def in_words(self) -> str:
        """How many passages are read and draws of facts asked after each length of prompt."""
        draws: dict[int, list[TextStudy]] = {}
        for text in self.texts():
            draws.setdefault(text.prompt_tokens, []).append(text)
        told = []
        for tokens, (text, *others) in draws.items():
            times = f"{1 + len(others)} draws" if others else "one draw"
            facts = f"{times} of {text.facts} facts in each of {text.fact_passages}"
            told.append(f"after {tokens} tokens {text.passages} passages, and {facts}")
        return "; ".join(told)

    def of_kind(self, kind: TextKind, **changes: Any) -> "ReplayStudy":
        """The nearest rivals alone, after the shortest prompt of another kind of text; one draw of facts,
        asked for later. `changes` are of the fields of `text`.
        """
        text = replace(self.text, kind=kind, **changes)
        numbers = {"passages": text.passages, "fact_passages": text.fact_passages, "facts": text.facts}
        long = (LongPrompt(min(self.lengths), **numbers),)
        return replace(self, text=text, prompts=(), long_prompts=long)

    def check_budget(self, name: str, budget: float) -> None:
        """Raise ValueError unless all that is compared is measured at a budget, an argument's (`name`)."""
        measured = "other_budgets" if self.other_budgets else "budgets"
        check_among(name, [budget], measured, getattr(self, measured))

    def policies_at(self, prompt: int) -> dict[str, list[CachePolicy]]:
        """Name -> the policies that are measured after a prompt of so many tokens."""
        if prompt in self.prompts:
            return compared_policies(self)
        budgets = self.other_budgets or self.budgets
        rivals = {name: [SHARED_RIVALS[name](budget) for budget in budgets] for name in LONG_RIVALS}
        return _to_replace(budgets) | rivals


def compared_policies(study: ReplayStudy) -> dict[str, list[CachePolicy]]:
    """Name -> a policy at each budget: Replay and those it is to replace, what others have published since,
    these with shared slots too, one that reads twice, H2O with sums that fade, and Replay's simpler forms.
    """
    chosen = _to_replace(study.budgets)
    others: dict[str, Callable[[float], CachePolicy]] = {
        name: partial(make_policy, name) for name in published_policies() if name not in OLD
    }
    others |= SHARED_RIVALS
    others |= {TWICE: SecondPass}
    others |= {name: partial(Replay, share=share) for name, share in FORMS.items()}
    if study.other_budgets:
        chosen |= {name: [make(budget) for budget in study.other_budgets] for name, make in others.items()}
        chosen[DECAYED] = [H2O(budget, scoring=Score(decay=0.97), sink_tokens=4) for budget in study.budgets]
    return chosen


def _to_replace(budgets: Sequence[float]) -> dict[str, list[CachePolicy]]:
    """Replay and those that it is to replace."""
    return {name: [make_policy(name, budget) for budget in budgets] for name in ("replay", *OLD)}


def measure_replay(
    study: ReplayStudy, *, runs: Path = Path("runs"), cache: Path | None = None, progress: bool = True
) -> pd.DataFrame:
    """The rows of `measure_text` for each prompt, told apart by the column `prompt`, and their `attrs`.

    Facts of all seeds are items of one measure; the passages of perplexity are the same for each.
    """
    frames: list[pd.DataFrame] = []
    used: dict[str, dict[str, Any]] = {}
    for text in study.texts():
        prompt = text.prompt_tokens
        chosen = study.policies_at(prompt)
        rows = measure_text(text, study.corpus, chosen, runs=runs, cache=cache, progress=progress)
        kept = rows if text.seed == study.seeds[0] else rows[rows.measure != PERPLEXITY]
        frames.append(kept.assign(prompt=prompt, item=f"{text.seed}/" + kept["item"]))
        used |= {run["run"]: run for run in rows.attrs["runs"]}
        data = rows.attrs["data"]
    rows = pd.concat(frames, ignore_index=True)
    rows.attrs |= {"data": data, "runs": list(used.values())}
    return rows


def estimates_by_prompt(rows: pd.DataFrame) -> pd.DataFrame:
    """The lines of `estimates` for each prompt, with a column for it in front."""
    frames = []
    for prompt, of_prompt in rows.groupby(PROMPT, sort=False):
        cells = estimates(of_prompt)
        cells.insert(0, PROMPT, prompt)
        frames.append(cells)
    return pd.concat(frames, ignore_index=True)


def values_table(lines: pd.DataFrame) -> Table:
    """The lines of `estimates_by_prompt` as they are written."""
    plain = ("items", "clusters", "chance", "note")
    shown = [Column(name) for name in (PROMPT, "measure", "policy", "budget", "split")]
    return Table(lines, [*shown, Estimate("value"), *(Column(name) for name in plain)])


def differences_by_prompt(rows: pd.DataFrame) -> pd.DataFrame:
    """The lines of `differences` for each prompt: Replay against every other policy and the full cache."""
    frames = []
    for prompt, of_prompt in rows.groupby(PROMPT, sort=False):
        rivals = [name for name in dict.fromkeys(of_prompt.policy) if name not in ("full", "replay")]
        cells = differences(of_prompt, "replay", rivals)
        cells.insert(0, PROMPT, prompt)
        frames.append(cells)
    return pd.concat(frames, ignore_index=True)


# --- claims -------------------------------------------------------------------------------------------------

TIMES = 2.5  # as many facts as the best of those


def replay_claims(rows: pd.DataFrame, model: str, table: str, text: str = "") -> list[Claim]:
    """The two goals that Replay was made for (headlines), and whether it is better than each other policy.

    `text`: what kind of text was read, where it is not English prose; the goals are headlines of that alone.

    A comparison is at one budget, of all prompts that both were measured after, over documents; one
    correction (Holm) for all and both goals: how many times as many facts as the best of `OLD` it gives back
    after each prompt, and that none of those is far ahead in any setting.
    """
    by_cluster = clustered(rows)
    rivals = [name for name in dict.fromkeys(by_cluster.policy) if name not in ("full", "replay", *FORMS)]
    blank = Claim(ITEM, "", "not decided", table=table, model=model, restated=True)
    goal = replace(blank, headline=not text)
    of = f" of {text}" if text else ""
    goals = [
        _times_as_many(of_prompt, f"{prompt} tokens{of}", goal)
        for prompt, of_prompt in by_cluster.groupby(PROMPT)
    ]
    goals.append(_nowhere_behind(by_cluster, goal, of))
    effects: dict[Claim, Tested] = {goal: tested for goal, tested in goals if tested is not None}
    for measure in MEASURES:
        for rival in rivals:
            for budget, of_budget in leads(by_cluster, measure, rival).groupby("budget"):
                prompts = ", ".join(map(str, of_budget[PROMPT].unique()))
                sentence = (
                    f"at {percents([float(str(budget))])} of {prompts} tokens{of} Replay is better than "
                    f"{CACHES.get(rival, rival)} in {measure}"
                )
                means = of_budget.groupby("cluster").lead.mean()
                lead = effect(lambda mean: mean, means.to_numpy()[None])
                n = f"{lead.documents} documents"
                effects[replace(blank, sentence=sentence, unit=_unit(measure), n=n)] = lead
    unmeasured = [goal for goal, tested in goals if tested is None]
    decided = family(effects)
    count = len(goals) - len(unmeasured)
    return [*decided[:count], *unmeasured, *decided[count:]]


def leads(rows: pd.DataFrame, measure: str, rival: str) -> pd.DataFrame:
    """How much better Replay is than a rival by each item of a measure, prompt and budget of both."""
    frames = [pd.DataFrame({"lead": [], "cluster": [], "budget": [], PROMPT: []})]
    for prompt, of_prompt in rows[rows.measure == measure].groupby(PROMPT):
        both = (of_prompt[of_prompt.policy == name].budget for name in ("replay", rival))
        for budget in sorted(set.intersection(*map(set, both))):
            pairs = paired(of_prompt, measure, "replay", budget, rival)
            frames.append(pairs.assign(budget=budget, **{PROMPT: prompt}))
    return pd.concat(frames[1:] or frames)


def _times_as_many(rows: pd.DataFrame, prompt: str, claim: Claim) -> tuple[Claim, Equivalence | None]:
    """The claim that Replay gives back `TIMES` as many facts at 20 % of a prompt (in words) as the best of
    the old ones, and what decides it; None where it cannot be measured.
    """
    asked = rows[(rows.measure == FACTS_LATER) & (rows.budget == 0.2)]
    sentence = (
        f"at 20 % of {prompt} Replay gives back at least {TIMES:g} times as many facts as the best of "
        f"{_named(OLD)}, asked after eviction"
    )
    claim = replace(claim, sentence=sentence, unit="times as many")
    shares = asked.groupby("policy").value.mean()
    old = [name for name in OLD if name in shares]
    if "replay" not in shares or not old or not shares[old].max():
        reason = "none of them gives back any"
        if "replay" not in shares:
            reason = "20 % was not measured"
        elif not old:
            reason = "none of them was measured at 20 %"
        return replace(claim, outcome="cannot be measured here", reason=reason), None
    best = str(shares[old].idxmax())
    pairs = asked[asked.policy.isin(["replay", best])].pivot_table(
        index="cluster", columns="policy", values="value"
    )
    values = (pairs[name].to_numpy()[None] for name in ("replay", best))
    share = ratio_within(lambda ours, theirs: ours, lambda ours, theirs: theirs, TIMES, math.inf, *values)
    return replace(claim, n=f"{share.effect.documents} documents"), share


def _nowhere_behind(rows: pd.DataFrame, claim: Claim, of: str) -> tuple[Claim, Equivalence | None]:
    """The claim that Replay is nowhere behind any of the old ones by more than counts as near the full cache
    (`of`: of which text), and what decides it; None where nothing can be compared.

    Every comparison has to show it (the largest p decides: Berger 1982), and one is enough against it,
    corrected for their number (Bonferroni). The claim has the numbers of the comparison that shows it least.
    """
    sentence = (
        f"Replay is nowhere behind {_named(OLD)} by more than {NEAR:g} nats or {LOST:.0%} of the full "
        f"cache's answers beyond chance, at any budget and prompt{of}"
    )
    claim = replace(claim, sentence=sentence)
    compared = [
        (lead.chance_above(-margin), where, lead)
        for prompt, of_prompt in rows.groupby(PROMPT)
        for measure in MEASURES
        for margin, where, lead in _old_leads(of_prompt, measure, prompt)
    ]
    if not compared:
        reason = "none of them was measured beside it"
        return replace(claim, outcome="cannot be measured here", reason=reason), None
    chances = np.array([chance for chance, _, _ in compared])
    least = int(np.argmax(chances))  # NaN, of a single document, is the largest
    _, where, lead = compared[least]
    against = min(1.0, len(compared) * float(np.min(1 - chances)))
    tested = Equivalence(lead, float(chances[least]), against)
    return replace(claim, unit=where, n=f"{len(compared)} comparisons"), tested


def _old_leads(rows: pd.DataFrame, measure: str, prompt: Any) -> Iterator[tuple[float, str, Effect]]:
    """How far behind counts as near, the unit with the setting in words, and Replay's lead, for each budget
    and old policy; none where the full cache does no better than chance.
    """
    of_measure = rows[rows.measure == measure]
    full = of_measure[of_measure.policy == "full"]
    beyond = full.value.mean() - chance_of(measure, full)
    margin = NEAR if measure == PERPLEXITY else LOST * beyond
    if full.empty or (measure != PERPLEXITY and not beyond > 0):
        return
    for budget in sorted(set(of_measure[of_measure.policy == "replay"].budget)):
        for rival in (name for name in OLD if name in set(of_measure[of_measure.budget == budget].policy)):
            pairs = paired(of_measure, measure, "replay", budget, rival)
            lead = effect(lambda mean: mean, pairs.groupby("cluster").lead.mean().to_numpy()[None])
            where = f"{measure} at {percents([budget])} of {prompt} tokens, beside {CACHES[rival]}"
            yield margin, f"{_unit(measure)} (least sure: {where})", lead


def _unit(measure: str) -> str:
    return "nats a token" if measure == PERPLEXITY else "of the answers"


def _named(policies: Sequence[str]) -> str:
    return ", ".join(CACHES[name] for name in policies)


QUARTERS = ("first quarter", "second", "third", "last")


def by_depth(rows: pd.DataFrame, budget: float) -> pd.DataFrame:
    """Share of facts given back after eviction, by prompt, policy and where in the passage they stood."""
    asked = rows[(rows.measure == FACTS_LATER) & rows.budget.isin([budget, 1.0])]
    quarter = (asked.depth * 4).astype(int).clip(0, 3).map(lambda number: QUARTERS[number])
    shares = asked.assign(quarter=quarter).pivot_table(
        index=[PROMPT, "policy"], columns="quarter", values="value", sort=False
    )
    return shares.reindex(columns=[name for name in QUARTERS if name in shares])
