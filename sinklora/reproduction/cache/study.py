"""Fig. 6: what each cache policy costs at each budget, in perplexity and in recall, with intervals.

Measurements are run directories: a stopped study goes on where it was, a finished one is read back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sinklora.cache.attention_scores import Score
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.novelty import Novelty
from sinklora.cache.policies import POLICIES, CachePolicy, make_policy, policy_key
from sinklora.cache.sliding_window import SlidingWindow
from sinklora.evaluate.statistics import Accuracy, interval
from sinklora.evaluate.through_cache import continuation_nll, pass_keys, recalled
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import default_device
from sinklora.records.checks import Count, Distinct, check_fields
from sinklora.records.runs import remember
from sinklora.records.tables import DASH
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import base_hash
from sinklora.train.tokens import corpus_record, tokenize_corpus

PERPLEXITY = "perplexity"

RECALL = "recall"  # the question is part of the prompt

RECALL_LATER = "recall, asked after eviction"

QUESTIONS = "questions"  # multiple choice, see question_study

MEASURES = (PERPLEXITY, RECALL, RECALL_LATER, QUESTIONS)

CHANCE = {RECALL: 1e-5, RECALL_LATER: 1e-5, QUESTIONS: 0.25}  # of 100,000 five-digit numbers; of four choices

SMALL = 0.2  # the budget up to which H2O is said to stand out


def policies(budget: float) -> dict[str, CachePolicy]:
    """Every policy that has a budget, at this one (a fraction of the prompt): published ones, then ours."""
    return {name: make_policy(name, budget) for name in (*published_policies(), *our_policies())}


def published_policies() -> list[str]:
    """The policies that others have published, by name."""
    return [name for name, policy in POLICIES.items() if policy.bounded and policy.paper]


def our_policies() -> list[str]:
    """The policies that nobody has published, by name."""
    return [name for name, policy in POLICIES.items() if policy.bounded and not policy.paper]


def h2o_variants(budget: float) -> dict[str, CachePolicy]:
    """Other splits and other scores of heavy hitters, and other shares of novel tokens."""
    return {
        "h2o": H2O(budget),
        "h2o, 1/4 heavy": H2O(budget, recent=0.75 * budget),
        "h2o, 1/8 heavy": H2O(budget, recent=0.875 * budget),
        "h2o, last 32 queries": H2O(budget, scoring=Score(window=32)),
        "h2o, decayed 0.97": H2O(budget, scoring=Score(decay=0.97)),
        "h2o, averaged": H2O(budget, scoring=Score(average=True)),
        "h2o, 4 protected": H2O(budget, sink_tokens=4),
        "local": SlidingWindow(budget),
        **{f"novelty, share {share}": Novelty(budget, share=share) for share in (0.125, 0.25, 0.5)},
    }


@dataclass(frozen=True)
class CacheStudy:
    """Where policies are compared: documents to continue, and planted numbers to recall.

    Prompts of `prompt_tokens`, of which budgets are fractions; `scored_tokens` after them are predicted.
    `trials` pass-key documents of at most `recall_tokens` tokens for each seed, keys swept over depth.
    """

    base: str
    corpus: CorpusSpec
    prompt_tokens: Count = 384
    scored_tokens: Count = 128
    documents: Count = 64
    recall_tokens: Count = 480
    trials: Count = 32
    seeds: Distinct[int] = (0, 1, 2)

    def __post_init__(self) -> None:
        check_fields(self)


def measure(
    study: CacheStudy,
    chosen: Mapping[str, Sequence[CachePolicy]],
    *,
    runs: Path = Path("runs"),
    cache: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Every measurement of every policy: one row per policy, budget, measure and item.

    `chosen`: name -> the policy at each budget; the full cache is measured as well. Columns: `policy`,
    `budget` (fraction), `measure`, `item` (document, or trial of a seed), `value` (nats a token, or
    0 and 1). `rows.attrs["data"]` records the documents.
    """
    tokenizer = AutoTokenizer.from_pretrained(study.base)
    documents, data = _documents(study, tokenizer, cache)
    model: list[PreTrainedModel] = []  # loaded when something is missing
    frames = []
    for name, policy in [("full", Full()), *((n, p) for n, ps in chosen.items() for p in ps)]:
        spec = {
            "study": {k: v for k, v in asdict(study).items() if k != "corpus"},
            "base_sha256": base_hash(study.base),
            "data": data,
            "policy": policy_key(policy),
        }
        work = partial(_measure_one, study, policy, tokenizer, documents, model, progress)
        rows = pd.DataFrame(remember(spec, work, runs=runs, prefix="cache"))
        budget = 1.0 if name == "full" else policy.budget
        frames.append(
            rows.assign(policy=name, budget=budget, split=policy.described_split(study.prompt_tokens))
        )
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs["data"] = data
    return frame


def _documents(
    study: CacheStudy, tokenizer: PreTrainedTokenizerBase, cache: Path | None
) -> tuple[list[np.ndarray], dict[str, Any]]:
    corpus = tokenize_corpus(study.corpus, tokenizer, cache=cache)
    needed = study.prompt_tokens + study.scored_tokens
    long = [document for document in corpus.documents() if len(document) >= needed]
    if len(long) < study.documents:
        raise ValueError(
            f"documents={study.documents}: the corpus has {len(long)} of {needed} tokens or more"
        )
    return long[: study.documents], corpus_record(study.corpus, corpus)


def _measure_one(
    study: CacheStudy,
    policy: CachePolicy,
    tokenizer: PreTrainedTokenizerBase,
    documents: list[np.ndarray],
    loaded: list[PreTrainedModel],
    progress: bool,
) -> list[dict[str, Any]]:
    if not loaded:
        device = default_device()
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(study.base, dtype=dtype)
        loaded.append(model.to(device).eval())
    model = loaded[0]
    make = partial(BudgetCache, model, policy)
    lengths = {"prompt_tokens": study.prompt_tokens, "scored_tokens": study.scored_tokens}
    nats = continuation_nll(model, documents, make, batch_size=64, progress=progress, **lengths).mean(1)
    rows: list[dict[str, Any]] = [
        {"measure": PERPLEXITY, "item": str(i), "value": float(n)} for i, n in enumerate(nats)
    ]
    for seed in study.seeds:
        keys = pass_keys(tokenizer, tokens=study.recall_tokens, trials=study.trials, seed=seed)
        for measure, later in ((RECALL, False), (RECALL_LATER, True)):
            right = recalled(
                model, tokenizer, keys, make, question_later=later, batch_size=64, progress=progress
            )
            rows += [
                {"measure": measure, "item": f"{seed}/{i}", "value": float(r)} for i, r in enumerate(right)
            ]
    return rows


def measures(rows: pd.DataFrame) -> list[str]:
    """Those of MEASURES that the rows have."""
    return [measure for measure in MEASURES if measure in set(rows.measure)]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per measure, policy and budget: value, standard error, 95 % interval, n, chance, split.

    Perplexity: t-interval over documents (of the mean nats); answers: Wilson interval over trials.
    """
    lines = []
    for (measure, policy, budget), group in rows.groupby(["measure", "policy", "budget"], sort=False):
        values = group.value
        if measure == PERPLEXITY:
            low, high = interval(values)
            value, low, high = math.exp(values.mean()), math.exp(low), math.exp(high)
            error, chance = value * float(values.std()) / math.sqrt(len(values)), DASH
        else:
            accuracy = Accuracy(int(values.sum()), len(values))
            value, (low, high) = accuracy.share, accuracy.interval()
            error, chance = math.sqrt(value * (1 - value) / len(values)), f"{CHANCE[str(measure)]:g}"
        line = {"measure": measure, "policy": policy, "budget": budget, "eviction": "real"}
        line |= {"split": group.split.iloc[0], "value": value, "standard error": error}
        lines.append({**line, "low": low, "high": high, "n": len(values), "chance": chance})
    return pd.DataFrame(lines)


def table(rows: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Policies by budgets for one measure, as text: value and 95 % interval."""
    found = summary(rows)
    found = found[found.measure == measure]
    digits = 2
    cell = [
        f"{v:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
        for v, low, high in zip(found.value, found.low, found.high, strict=True)
    ]
    found = found.assign(cell=cell, percent=[f"{100 * b:g} %" for b in found.budget])
    order = list(dict.fromkeys(found.sort_values("budget").percent))
    wide = found.pivot(index="policy", columns="percent", values="cell")[order]
    wide = wide.reindex(list(dict.fromkeys(found.policy))).fillna(DASH).reset_index()
    wide.columns.name = None
    return wide


def lead(rows: pd.DataFrame, measure: str, policy: str, rival: str, budget: float) -> "pd.Series[float]":
    """How much better a policy is than a rival, item by item: nats saved, or answers gained."""
    at = rows[(rows.measure == measure) & (rows.budget == budget)].pivot(
        index="item", columns="policy", values="value"
    )
    difference = at[policy] - at[rival]
    return -difference if measure == PERPLEXITY else difference


def duels(rows: pd.DataFrame, policy: str = "novelty", rivals: Sequence[str] | None = None) -> pd.DataFrame:
    """A policy against the best of its rivals at each budget, paired by item; rivals: the published ones.

    `lead` in nats a token or share of answers, with its 95 % t-interval; `worse` where all of the
    interval is below 0.
    """
    lines = []
    against = list(published_policies() if rivals is None else rivals)
    for measure in measures(rows):
        mine = rows[rows.measure == measure]
        for budget in sorted(mine[mine.policy == policy].budget.unique()):
            at_budget = mine[(mine.budget == budget) & mine.policy.isin(against)]
            means = at_budget.groupby("policy").value.mean()
            best = means.idxmin() if measure == PERPLEXITY else means.idxmax()
            leads = lead(rows, measure, policy, best, budget)
            low, high = interval(leads)
            line = {"measure": measure, "budget": budget, "best rival": best, "lead": leads.mean()}
            lines.append({**line, "low": low, "high": high, "n": len(leads), "worse": high < 0})
    return pd.DataFrame(lines)


def verdict(rows: pd.DataFrame) -> str:
    """What the numbers say of H2O against Local, and of our policies against the best of the others.

    The claim holds for a measure where H2O is better than Local at some small budget and worse at none.
    """
    sentences, held = [], []
    budgets = sorted(rows[rows.policy == "h2o"].budget.unique())
    for measure in measures(rows):
        wins, losses = [], []
        for budget in budgets:
            low, high = interval(lead(rows, measure, "h2o", "local", budget))
            if low > 0:
                wins.append(budget)
            if high < 0:
                losses.append(budget)
        if min(wins, default=1) <= SMALL < min(losses, default=1):
            held.append(measure)
        won, lost = percents(wins), percents(losses)
        sentences.append(f"{measure}: H2O is better than Local at {won}, worse at {lost}.")
    claim = f"H2O better than Local at {100 * SMALL:g} % or less"
    first = f"Held for {', '.join(held)} ({claim})." if held else f"Did not hold ({claim}: in no measure)."
    ours = [_verdict_on(name, rows) for name in our_policies() if name in set(rows.policy)]
    return " ".join([first, *sentences, *ours])


def _verdict_on(policy: str, rows: pd.DataFrame) -> str:
    found, rivals = duels(rows, policy), ", ".join(published_policies())
    better, compared = int((found.low > 0).sum()), len(found)
    worse = found[found.worse]
    if worse.empty:
        return (
            f"Ours, {policy}: never worse than the best of {rivals} within the paired 95 % "
            f"intervals ({compared} comparisons); better in {better}."
        )
    places = zip(worse.measure, worse.budget, strict=True)
    where = ", ".join(f"{measure} at {100 * budget:g} %" for measure, budget in places)
    return (
        f"Ours, {policy}: worse than the best of {rivals} in {where}, {len(worse)} of {compared} "
        f"comparisons ({0.025 * compared:.1f} would be by chance alone); better in {better}."
    )


def variants_verdict(rows: pd.DataFrame) -> str:
    """Which policy does best for which use, and whether a variant of H2O is nowhere worse than Local."""
    sentences = []
    for measure in measures(rows):
        mine = rows[(rows.measure == measure) & (rows.policy != "full")]
        best = []
        budgets = sorted(mine.budget.unique())
        for budget in budgets:
            means = mine[mine.budget == budget].groupby("policy", sort=False).value.mean()
            winner = str(means.idxmin() if measure == PERPLEXITY else means.idxmax())
            others = [str(name) for name in means.index if name != winner]
            level = [n for n in others if interval(lead(rows, measure, winner, n, budget))[0] <= 0]
            also = f" ({len(level)} of {len(others)} others not surely worse)" if level else ""
            best.append(f"{winner} at {percents([budget])}{also}")
        variants = [name for name in dict.fromkeys(mine.policy) if name.startswith("h2o")]
        level = [
            name
            for name in variants
            if all(interval(lead(rows, measure, name, "local", budget))[1] >= 0 for budget in budgets)
        ]
        sentences.append(
            f"{measure}: best are {'; '.join(best)}. Of H2O's variants, nowhere worse than Local within the "
            f"paired 95 % intervals: {'; '.join(level) or 'none'}."
        )
    return " ".join(sentences)


def percents(budgets: Sequence[float]) -> str:
    """Budgets as they are spoken of."""
    return ", ".join(f"{100 * budget:g} %" for budget in budgets) or "no budget"
