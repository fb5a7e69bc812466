"""Fig. 6: what each cache policy costs at each budget, in perplexity and in recall, with intervals.

Measurements are run directories: a stopped study goes on where it was, a finished one is read back.
"""

from collections.abc import Callable, Mapping, Sequence
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
from sinklora.evaluate.through_cache import continuation_nll, pass_keys, recalled
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import default_device
from sinklora.pretrained.catalogue import packaged_model
from sinklora.pretrained.fetch import model_path
from sinklora.pretrained.loading import dtype_of
from sinklora.records.checks import Count, Distinct, check_fields
from sinklora.records.runs import remember, run_records
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


BESIDE_REPLAY = ("expected_attention", "snapkv", "tova")  # in a study of its own, which asks for facts


def policies_of_figure_6(budget: float) -> dict[str, CachePolicy]:
    """Those that Fig. 6 shows, new ones among them: the paper's, StreamingLLM, and ours."""
    return {name: policy for name, policy in policies(budget).items() if name not in BESIDE_REPLAY}


def published_policies() -> list[str]:
    """The policies that others have published, by name."""
    return [name for name, policy in POLICIES.items() if policy.bounded and policy.paper]


def our_policies() -> list[str]:
    """The policies that nobody has published, by name."""
    return [name for name, policy in POLICIES.items() if policy.bounded and not policy.paper]


def at_budgets(
    policies_at: Callable[[float], Mapping[str, CachePolicy]], budgets: Sequence[float]
) -> dict[str, list[CachePolicy]]:
    """Name -> the policy at each budget. `policies_at`: `policies_of_figure_6` or `h2o_variants`."""
    made = [policies_at(budget) for budget in budgets]
    return {name: [at_budget[name] for at_budget in made] for name in made[0]}


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
    0 and 1). `rows.attrs` record the documents (`data`) and the `runs`.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path(study.base))
    documents, data = _documents(study, tokenizer, cache)
    model: list[PreTrainedModel] = []  # loaded when something is missing
    used: list[Path] = []
    frames = []
    for name, policy in [("full", Full()), *((n, p) for n, ps in chosen.items() for p in ps)]:
        spec = {
            "study": {k: v for k, v in asdict(study).items() if k != "corpus"},
            **base_key(study.base),
            "data": data,
            "policy": policy_key(policy),
        }
        work = partial(_measure_one, study, policy, tokenizer, documents, model, progress)
        rows = pd.DataFrame(remember(spec, work, runs=runs, prefix="cache", used=used))
        budget = 1.0 if name == "full" else policy.budget
        frames.append(
            rows.assign(policy=name, budget=budget, split=policy.described_split(study.prompt_tokens))
        )
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs |= {"data": data, "runs": run_records(used)}
    return frame


def base_dtype(base: str) -> torch.dtype:
    """What a base is measured in: bfloat16 on a GPU, else float32; a packaged model in what is fast."""
    device = default_device()
    return dtype_of(base, device, torch.bfloat16 if device == "cuda" else torch.float32)


def base_key(base: str) -> dict[str, Any]:
    """What identifies the base of stored measurements; of a packaged model also the dtype, which the machine
    decides.
    """
    dtype = {} if packaged_model(base) is None else {"dtype": str(base_dtype(base)).removeprefix("torch.")}
    return {"base_sha256": base_hash(base), **dtype}


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
        model: Any = AutoModelForCausalLM.from_pretrained(
            model_path(study.base), dtype=base_dtype(study.base)
        )
        loaded.append(model.to(default_device()).eval())
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
