"""Table 6: LongBench by category for a model and its extensions, from local data or synthetic sets."""

import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from sinklora.cache.policies import CachePolicy, policy_text
from sinklora.evaluate.longbench.metrics import category_table, check_references, score_predictions
from sinklora.evaluate.longbench.predictions import as_it_is, chat_format, predict
from sinklora.evaluate.longbench.records import Prediction, Record, load_records, resume_predictions
from sinklora.evaluate.longbench.tasks import CATEGORIES, DATASETS, SMALL, scored_as
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import default_device
from sinklora.lora.adapter import merge_adapter
from sinklora.records.files import json_hash, write_json
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import RunDirectory
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.longbench.synthetic_sets import synthetic_dataset
from sinklora.reproduction.retrieval.study import RetrievalStudy
from sinklora.train.sources import CorpusSpec, read_documents

PROVENANCE = "provenance.json"  # beside predictions: who made them

SHUFFLES = 200  # of which chance is the mean


def make_synthetic_sets(
    tokenizer: PreTrainedTokenizerBase, corpus: CorpusSpec, *, examples: int, tokens: int, seed: int
) -> dict[str, list[Record]]:
    """The generated stand-ins, one per category, from the documents of a corpus (Python sources)."""

    def count(text: str) -> int:
        return len(tokenizer(text)["input_ids"])

    documents = [(document.name, document.text) for document in read_documents(corpus)[0]]
    make = partial(synthetic_dataset, examples=examples, count_tokens=count, tokens=tokens, seed=seed)
    return {name: make(name, documents) for name in SMALL}


def local_sets(source: str, names: Iterable[str]) -> dict[str, list[Record]]:
    """LongBench itself, from a folder of its jsonl files or from the hub.

    Raises FileNotFoundError or ValueError for data that could not be read or scored.
    """
    sets = {name: load_records(source, name) for name in names}
    for name, records in sets.items():
        for number, record in enumerate(records, 1):
            check_references(name, record.answers, f"{source}, {name}, record {number}: 'answers'")
    return sets


def data_record(sets: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """What results say of the questions: of each data set how many, and the hash of their contents."""
    return {
        name: {"records": len(records), "sha256": json_hash([asdict(record) for record in records])}
        for name, records in sets.items()
    }


def extended_models(recipe: Recipe, parameters: Mapping[str, Any]) -> RetrievalStudy:
    """The extensions that a notebook's parameters name, asked nothing yet."""
    changes = tuple((name, parameters[name]) for name in ("context", "steps"))
    names, seeds = tuple(parameters["patterns"]), tuple(parameters["seeds"])
    return RetrievalStudy(recipe, names, seeds, (parameters["max_length"],), changes=changes)


def predictions(
    subjects: Iterable[tuple[str, dict[str, Any], Callable[[], nn.Module]]],
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Record]],
    *,
    max_length: int,
    policies: Mapping[str, CachePolicy | None],
    max_new_tokens: int | None = None,
    chat: bool = False,
    runs: Path = Path("runs"),
    used: list[Path] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, list[Prediction]]]:
    """Predictions by "model" or "model, cache", then by data set.

    `subjects`: name, what identifies the model, how it is loaded. `policies`: name -> policy of the cache;
    None is the model's own, and its name is not shown. `chat`: prompts are put into the tokenizer's chat
    template, but for few-shot and code tasks (as LongBench does). Each model, cache and setting has a run
    directory of prediction files of its own, which a stopped run continues, and which is added to `used`.
    Raises ValueError for `chat` with a tokenizer that has no chat template, DamagedRunError for predictions
    that changed since.
    """
    prompt_format = chat_format(tokenizer) if chat else as_it_is
    # Without it the settings are what they were before there was a choice: predictions made then are found.
    asked = {"chat_template": tokenizer.chat_template} if chat else {}
    by_model = {}
    for name, key, load in subjects:
        ready = cache(partial(_ready, load))
        for cache_name, policy in policies.items():
            setting = {
                "model": key,
                "cache": policy_text(policy),
                "max_length": max_length,
                "max_new_tokens": max_new_tokens,
                "records": {n: [record.id for record in records] for n, records in sets.items()},
                **asked,
            }
            options = {
                "max_length": max_length,
                "max_new_tokens": max_new_tokens,
                "prompt_format": prompt_format,
                "progress": progress,
            }
            work = partial(_predict_sets, ready, tokenizer, sets, policy, options)
            folder = RunDirectory(runs, setting, "longbench").reuse_or(work)
            if used is not None:
                used.append(folder)
            by_model[name if policy is None else f"{name}, {cache_name}"] = {
                n: resume_predictions(folder / f"{n}.jsonl", records) for n, records in sets.items()
            }
    return by_model


def _ready(load: Callable[[], nn.Module]) -> Any:
    loaded = load()
    model: Any = merge_adapter(loaded) if isinstance(loaded, PeftModel) else loaded
    return model.to(default_device()).eval()


def _predict_sets(
    ready: Callable[[], Any],
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Record]],
    policy: CachePolicy | None,
    options: Mapping[str, Any],
    folder: Path,
) -> list[str]:
    """Make what is missing of the predictions in `folder`, and say who made them; the names of all files."""
    made_by, started = _made_by(folder), time.perf_counter()
    write_json(folder / PROVENANCE, made_by)
    model = ready()
    factory = None if policy is None else partial(BudgetCache, model, policy)
    for name, records in sets.items():
        out = folder / f"{name}.jsonl"
        predict(model, tokenizer, records, name, out=out, cache_factory=factory, **options)
    seconds = round(time.perf_counter() - started, 1)
    write_json(folder / PROVENANCE, {"seconds": seconds, **made_by})
    return [*(f"{name}.jsonl" for name in sets), PROVENANCE]


def _made_by(folder: Path) -> dict[str, Any]:
    """The code, versions and machine that make predictions now. Where some are there already, how long all
    took is not known; nor whose they are, unless the same state of the code began them.
    """
    now = current_provenance()
    if not any(folder.glob("*.jsonl")):
        return now
    file = folder / PROVENANCE
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    nobody: dict[str, Any] = {"commit": None, "dirty": None, "changed_files": []}
    same = all(name in before and before[name] == now[name] for name in nobody)
    return {**now, **({} if same else nobody), "seconds": None}


def chance(dataset: str, made: Sequence[Prediction]) -> tuple[float, float]:
    """Score of the same predictions given for the wrong records: mean, and 95th percentile of shuffles, which
    are the same each time.
    """
    rng = random.Random(0)
    scores = []
    for _ in range(SHUFFLES):
        texts = [p.pred for p in made]
        rng.shuffle(texts)
        pairs = zip(texts, made, strict=True)
        shuffled = [Prediction(text, p.answers, p.all_classes, p.length, p.id) for text, p in pairs]
        scores.append(score_predictions(dataset, shuffled))
    return float(np.mean(scores)), float(np.percentile(scores, 95))


def scores_table(by_model: Mapping[str, Mapping[str, Sequence[Prediction]]]) -> pd.DataFrame:
    """Score (0 to 100) of each model on each data set, beside chance.

    Columns: model, dataset, category, n, score, `chance` (mean of the same answers shuffled over the
    records), `at chance` (the score is within 95 % of the shuffles).
    """
    rows = []
    for model, by_set in by_model.items():
        for dataset, made in by_set.items():
            value, (mean, high) = score_predictions(dataset, made), chance(dataset, made)
            category = DATASETS[scored_as(dataset)].category
            row = {"model": model, "dataset": dataset, "category": category, "n": len(made)}
            at_chance = "yes" if value <= high else "no"
            rows.append({**row, "score": value, "chance": mean, "at chance": at_chance})
    return pd.DataFrame(rows)


def benchmark_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Models by categories, laid out as LongLoRA's benchmark table; incomplete categories are missing."""
    rows = []
    for model, group in scores.groupby("model", sort=False):
        table = category_table(dict(zip(group.dataset, group.score, strict=True)))
        kind = "Small (generated)" if set(group.dataset) <= set(SMALL) else "English"
        [row] = table[table["Data sets"] == kind].to_dict("records")
        rows.append({"model": model, **{str(k): v for k, v in row.items()}})
    return pd.DataFrame(rows, columns=["model", "Data sets", "Avg", *CATEGORIES])


def verdict(scores: pd.DataFrame, synthetic: bool) -> str:
    """What the scores say of the paper's claim, or that generated sets cannot."""
    above = scores[scores["at chance"] == "no"].groupby("model", sort=False).dataset.count()
    counts = "; ".join(f"{m}: {above.get(m, 0)}" for m in dict.fromkeys(scores.model))
    total = scores.dataset.nunique()
    luck = f"{0.05 * len(scores):.1f} of all {len(scores)} would be by chance alone"
    said = f"Sets above chance, of {total}: {counts}; {luck}."
    if synthetic:
        return f"Not LongBench: generated sets for a small model of source text. {said}"
    means = scores.groupby("model", sort=False).score.mean()
    return f"{said} Mean over the sets: " + "; ".join(f"{m}: {v:.1f}" for m, v in means.items()) + "."
