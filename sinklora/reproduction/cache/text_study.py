"""Fig. 6 on a real language model: perplexity and planted facts in passages of real text, by cache policy.

Rows carry the `cluster` that an item belongs to: the document of a passage, or of the passage of a fact.
Measurements are run directories, as those of `cache.study`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sinklora.cache.full import Full
from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.fact_templates import ALIKE, TEMPLATES
from sinklora.evaluate.planted_facts import FactPassage, chance_nats, plant_facts, recalled_facts
from sinklora.evaluate.through_cache import continuation_nll
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import default_device
from sinklora.pretrained.fetch import model_path
from sinklora.pretrained.loading import load
from sinklora.records.checks import Count, NotNegative, check_fields
from sinklora.records.files import json_hash
from sinklora.records.runs import remember, run_records
from sinklora.reproduction.cache.second_pass import cache_for
from sinklora.reproduction.cache.study import PERPLEXITY, base_dtype, base_key
from sinklora.train.sources import CorpusSpec
from sinklora.train.tokens import TokenizedCorpus, corpus_record, tokenize_corpus

FACTS = "facts"  # the question is part of the prompt

FACTS_LATER = "facts, asked after eviction"

ROWS = 32  # read at a time

TextKind = Literal["prose", "code", "alike", "repeated"]

REPEATS = 4  # of the text that a passage of repeated text is made of

NATS = " (nats an answer)"  # behind the name of either


@dataclass(frozen=True)
class TextStudy:
    """How much of a corpus is measured, through each cache.

    `passages` of `prompt_tokens`, of which budgets are fractions, and `scored_tokens` after them: at most
    `per_document` of each document. `fact_passages` of `fact_tokens` with `facts` facts each, of the same
    documents; `seed` draws the facts. They are asked for after eviction, and (`facts_at_once`) each together
    with its whole passage, which takes four fifths of the time. `kind`: in "code" facts are comments; "alike"
    ones are sentences of one shape; a "repeated" passage is its first quarter four times, facts aside.
    """

    base: str
    prompt_tokens: Count = 1024
    scored_tokens: Count = 128
    passages: Count = 64
    per_document: Count = 8
    fact_tokens: Count = 1024
    fact_passages: Count = 16
    facts: Count = 4
    seed: NotNegative = 0
    facts_at_once: bool = True
    kind: TextKind = "prose"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Passage:
    """Token ids, and the name of the document that they are from."""

    document: str
    ids: np.ndarray


def passages_of(corpus: TokenizedCorpus, *, tokens: int, passages: int, per_document: int) -> list[Passage]:
    """`passages` of `tokens` tokens, spread evenly over each document and without its first token (BOS).

    A document gives as many as fit, at most `per_document`; documents come in the corpus's order, every one
    with its first passage before any with its second. Raises ValueError where the corpus has too few.
    """
    numbered: list[tuple[int, Passage]] = []
    for name, ids in zip(corpus.names, corpus.documents(), strict=True):
        room = len(ids) - 1
        count = min(per_document, room // tokens)
        part = room // max(count, 1)
        starts = [1 + number * part + (part - tokens) // 2 for number in range(count)]
        numbered += [(number, Passage(name, ids[s : s + tokens])) for number, s in enumerate(starts)]
    numbered.sort(key=lambda item: item[0])
    if len(numbered) < passages:
        raise ValueError(
            f"passages={passages}: the corpus has {len(numbered)} of {tokens} tokens, {per_document} "
            "a document"
        )
    return [passage for _, passage in numbered[:passages]]


def measure_text(
    study: TextStudy,
    corpus: CorpusSpec,
    chosen: Mapping[str, Sequence[CachePolicy]],
    *,
    runs: Path = Path("runs"),
    cache: Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Every measurement of every policy: one row per policy, budget, measure and item.

    `chosen`: name -> the policy at each budget; the full cache is measured as well. Columns as those of
    `cache.study.measure`, with `cluster` and, of facts, `chance`. `rows.attrs` record the
    documents (`data`) and the `runs`.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path(study.base))
    tokenized = tokenize_corpus(corpus, tokenizer, cache=cache, progress=progress)
    texts = passages_of_kind(study, tokenized, study.prompt_tokens + study.scored_tokens, study.passages)
    hosts = passages_of_kind(study, tokenized, study.fact_tokens, study.fact_passages)
    facts = plant_facts(
        tokenizer,
        [passage.ids for passage in hosts],
        tokens=study.fact_tokens,
        seed=study.seed,
        facts=study.facts,
        code=study.kind == "code",
        templates=ALIKE if study.kind == "alike" else TEMPLATES,
    )
    planted = [(host.document, passage) for host, passage in zip(hosts, facts, strict=True)]
    data = corpus_record(corpus, tokenized)
    loaded: list[PreTrainedModel] = []  # the model, when something is missing
    used: list[Path] = []
    frames = []
    for name, policy in [("full", Full()), *((n, p) for n, ps in chosen.items() for p in ps)]:
        common_key = {**base_key(study.base), "policy": policy_key(policy)}
        lengths = {"prompt_tokens": study.prompt_tokens, "scored_tokens": study.scored_tokens}
        read = {**common_key, **lengths, "texts_sha256": _texts_hash(texts)}
        asked = {**common_key, "facts_sha256": _facts_hash(planted)}
        asked |= {} if study.facts_at_once else {"asked": "later"}
        make = partial(cache_for, policy=policy, tokenizer=tokenizer)
        parts = [
            (read, partial(_perplexity_rows, study, loaded, make, texts, progress), "text-cache"),
            (asked, partial(_fact_rows, study, loaded, make, tokenizer, planted, progress), "fact-cache"),
        ]
        budget = 1.0 if name == "full" else policy.budget
        split = policy.described_split(study.prompt_tokens)
        for key, work, prefix in parts:
            rows = pd.DataFrame(remember(key, work, runs=runs, prefix=prefix, used=used))
            frames.append(rows.assign(policy=name, budget=budget, split=split))
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs |= {"data": data, "runs": run_records(used)}
    return frame


def passages_of_kind(study: TextStudy, corpus: TokenizedCorpus, tokens: int, count: int) -> list[Passage]:
    """`count` passages of `tokens` tokens, of the study's kind."""
    repeats = REPEATS if study.kind == "repeated" else 1
    pieces = passages_of(
        corpus, tokens=-(-tokens // repeats), passages=count, per_document=study.per_document
    )
    return [replace(piece, ids=np.tile(piece.ids, repeats)[:tokens]) for piece in pieces]


def _texts_hash(texts: Sequence[Passage]) -> str:
    return json_hash([[passage.document, passage.ids.tolist()] for passage in texts])


def _facts_hash(planted: Sequence[tuple[str, FactPassage]]) -> str:
    """Of all that is asked and read, so that a change of wording is another measurement."""
    return json_hash(
        [
            [
                document,
                passage.ids.tolist(),
                [[f.template.question, f.answer, f.depth] for f in passage.facts],
            ]
            for document, passage in planted
        ]
    )


def _loaded(study: TextStudy, loaded: list[PreTrainedModel]) -> PreTrainedModel:
    if not loaded:
        loaded.append(load(study.base, dtype=base_dtype(study.base), device=default_device()).model)
    return loaded[0]


def _perplexity_rows(
    study: TextStudy,
    loaded: list[PreTrainedModel],
    make: Callable[[PreTrainedModel], BudgetCache],
    texts: list[Passage],
    progress: bool,
) -> list[dict[str, Any]]:
    model = _loaded(study, loaded)
    nats = continuation_nll(
        model,
        [passage.ids for passage in texts],
        partial(make, model),
        prompt_tokens=study.prompt_tokens,
        scored_tokens=study.scored_tokens,
        batch_size=ROWS,
        progress=progress,
    ).mean(1)
    return [
        {"measure": PERPLEXITY, "item": str(number), "cluster": passage.document, "value": float(value)}
        | {"chance": None}
        for number, (passage, value) in enumerate(zip(texts, nats, strict=True))
    ]


def _fact_rows(
    study: TextStudy,
    loaded: list[PreTrainedModel],
    make: Callable[[PreTrainedModel], BudgetCache],
    tokenizer: PreTrainedTokenizerBase,
    planted: list[tuple[str, FactPassage]],
    progress: bool,
) -> list[dict[str, Any]]:
    model = _loaded(study, loaded)
    passages = [passage for _, passage in planted]
    rows = []
    at_once = {FACTS: False} if study.facts_at_once else {}
    for measure, later in {**at_once, FACTS_LATER: True}.items():
        recalled = recalled_facts(
            model,
            tokenizer,
            passages,
            partial(make, model),
            question_later=later,
            batch_size=ROWS,
            progress=progress,
        )
        for number, ((document, passage), answers) in enumerate(zip(planted, recalled, strict=True)):
            for place, (fact, answer) in enumerate(zip(passage.facts, answers, strict=True)):
                item = {"item": f"{number}/{place}", "cluster": document, "depth": fact.depth}
                item |= {"kind": fact.template.kind.name}
                exact = {"value": float(answer.exact), "chance": fact.template.chance}
                rows.append({"measure": measure, **item, **exact})
                rows.append(
                    {"measure": measure + NATS, **item, "value": answer.nats, "chance": chance_nats(fact)}
                )
    return rows
