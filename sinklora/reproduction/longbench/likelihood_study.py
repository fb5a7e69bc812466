"""Right answers to questions about real documents, by how likely they are through each cache."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.clustered_means import mean_interval
from sinklora.evaluate.longbench.likelihoods import answer_nats
from sinklora.evaluate.longbench.predictions import as_it_is, chat_format
from sinklora.evaluate.longbench.records import Record
from sinklora.evaluate.paired_effects import effect, within
from sinklora.hf.budget_cache import BudgetCache
from sinklora.records.files import json_hash
from sinklora.records.runs import remember, run_records
from sinklora.records.tables import Column, Estimate, Table, part
from sinklora.reproduction.longbench.claims import CACHES_APART
from sinklora.reproduction.longbench.study import data_record
from sinklora.reproduction.model_under_test import ModelUnderTest
from sinklora.reproduction.report.claims import NEAR, Claim, Tested, family
from sinklora.reproduction.retrieval.bounded_caches import CANNOT, FULL, REPLAY, claimed_leads

NO_DOCUMENT = "no document"  # what the question alone is worth

NATS, ABOVE = "nats a token", "nats above the full cache"

Sets = Mapping[str, Sequence[Record]]


def real_records(sets: Sets) -> dict[str, Sequence[Record]]:
    """Those of real documents; where there are none, all of the generated ones."""
    real = {name: records for name, records in sets.items() if not name.startswith("small_")}
    return real or dict(sets)


def measure_likelihoods(
    subject: ModelUnderTest,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sets,
    caches: Mapping[str, CachePolicy | None],
    *,
    max_length: int,
    answer_tokens: int,
    chat: bool = False,
    runs: Path = Path("runs"),
    progress: bool = True,
) -> pd.DataFrame:
    """One row a question and cache, and without any document: `dataset`, `question` (its id), `document` (a
    hash of its context), `cache`, `nats` (a token of the likeliest right answer).

    Each cache's are a run. `rows.attrs` record the questions (`data`) and the `runs`.
    """
    prompt_format = chat_format(tokenizer) if chat else as_it_is
    about = {"max_length": max_length, "answer_tokens": answer_tokens, "model": subject.identity}
    about |= {"records": data_record(sets), "chat_template": tokenizer.chat_template if chat else None}
    ready, used = cache(subject.ready), list[Path]()

    def nats_of(model: Any, make: Callable[[], Cache], name: str, questions: Sequence[Record]) -> list[float]:
        return answer_nats(
            model,
            tokenizer,
            questions,
            name,
            make,
            max_length=max_length,
            answer_tokens=answer_tokens,
            prompt_format=prompt_format,
            progress=progress,
        )

    def lines(policy: CachePolicy | None, questions: Sets) -> list[dict[str, Any]]:
        model: Any = ready()
        make = DynamicCache if policy is None else partial(BudgetCache, model, policy)
        return [
            {"dataset": name, "question": record.id, "document": json_hash(record.context)[:12], "nats": nats}
            for name, records in sets.items()
            for record, nats in zip(records, nats_of(model, make, name, questions[name]), strict=True)
        ]

    without = {name: [replace(record, context="") for record in records] for name, records in sets.items()}
    frames = []
    for name, policy in {**caches, NO_DOCUMENT: None}.items():
        key = {**about, "policy": policy_key(policy), "document": name != NO_DOCUMENT}
        work = partial(lines, policy, sets if name != NO_DOCUMENT else without)
        rows = pd.DataFrame(remember(key, work, runs=runs, prefix="likelihoods", used=used))
        frames.append(rows.assign(cache=name))
    found = pd.concat(frames, ignore_index=True)
    found.attrs |= {"data": data_record(sets), "runs": run_records(used)}
    return found


def likelihood_table(rows: pd.DataFrame) -> Table:
    """Data sets by caches: nats a token of right answers, and how many more than with the full cache, in
    pairs (95 % intervals over documents).

    `remark` marks data sets in which the document makes right answers no surer to be likelier.
    """
    lines = []
    for dataset, of_set in rows.groupby("dataset", sort=False):
        for name, of_cache in of_set.groupby("cache", sort=False):
            documents = of_cache.document.tolist()
            line: dict[str, Any] = {"data set": dataset, "n": len(of_cache)}
            line |= {"documents": of_cache.document.nunique(), "cache": name}
            line |= _estimate(NATS, of_cache.nats.tolist(), documents)
            if name != FULL:
                line |= _estimate(ABOVE, _above_full(of_set, str(name)).tolist(), documents)
            lines.append(line | {"remark": "" if _brings(of_set) else CANNOT})
    columns = [Column(name) for name in ("data set", "n", "documents", "cache")]
    return Table(pd.DataFrame(lines), [*columns, Estimate(NATS), Estimate(ABOVE), Column("remark")])


def _estimate(heading: str, values: Sequence[float], documents: Sequence[str]) -> dict[str, float]:
    mean, low, high = mean_interval(values, documents)
    return {heading: mean, part(heading, "low"): low, part(heading, "high"): high}


def _above_full(of_set: pd.DataFrame, name: str) -> "pd.Series[float]":
    """How many nats more than with the full cache each question's answer costs, in the order of the rows."""
    by_cache = {cache: rows.set_index("question").nats for cache, rows in of_set.groupby("cache")}
    return by_cache[name] - by_cache[FULL].loc[by_cache[name].index]


def _brings(of_set: pd.DataFrame) -> bool:
    """Whether the document surely makes right answers likelier."""
    documents = of_set[of_set.cache == NO_DOCUMENT].document.tolist()
    return mean_interval(_above_full(of_set, NO_DOCUMENT).tolist(), documents).low > 0


def likelihood_claims(rows: pd.DataFrame, model: str) -> list[Claim]:
    """Whether right answers are likelier with one bounded cache than with another (`LEADS`), and with H2O and
    Replay as likely as with the full one, over documents; one correction (Holm).

    Data sets in which the document brings nothing are left out.
    """
    usable = rows.groupby("dataset", sort=False).filter(_brings)
    claim = Claim(
        CACHES_APART, "", "not decided", unit=NATS, table="likelihood_real", model=model, restated=True
    )
    if usable.empty:
        reason = "documents do not surely make right answers likelier, not even with the full cache"
        sentence = "through bounded caches right answers are as likely as through the full one"
        return [replace(claim, sentence=sentence, outcome="cannot be measured here", reason=reason)]
    wide = usable.pivot_table(index="document", columns="cache", values="nats", sort=False)
    sets = f"{usable.dataset.nunique()} of {rows.dataset.nunique()} sets"
    claim = replace(claim, n=f"{len(wide)} documents, {sets}")
    effects: dict[Claim, Tested] = {}
    for better, worse in claimed_leads(wide.columns):
        sentence = f"right answers are likelier with {better} than with {worse}"
        lead = (wide[worse] - wide[better]).to_numpy()[None]
        effects[replace(claim, sentence=sentence)] = effect(lambda mean: mean, lead)
    for name in (name for name in ("H2O", REPLAY) if name in wide):
        sentence = f"with {name} right answers are as likely as with the full cache, to {NEAR:g} nats a token"
        cost = effect(lambda mean: mean, (wide[name] - wide[FULL]).to_numpy()[None])
        effects[replace(claim, sentence=sentence)] = within(cost, NEAR)
    return family(effects)
