"""Table 6: LongBench by category for a model and its extensions, from local data or synthetic sets."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
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
from sinklora.evaluate.longbench.records import Prediction, Record, load_records
from sinklora.evaluate.longbench.tasks import CATEGORIES, DATASETS, SMALL, scored_as
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import default_device
from sinklora.lora.adapter import merge_adapter
from sinklora.records.files import json_hash
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.longbench.synthetic_sets import synthetic_dataset
from sinklora.reproduction.retrieval.study import RetrievalStudy
from sinklora.train.sources import CorpusSpec, read_documents

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
    progress: bool = True,
) -> dict[str, dict[str, list[Prediction]]]:
    """Predictions by "model" or "model, cache", then by data set.

    `subjects`: name, what identifies the model, how it is loaded. `policies`: name -> policy of the cache;
    None is the model's own, and its name is not shown. `chat`: prompts are put into the tokenizer's chat
    template, but for few-shot and code tasks (as LongBench does). Each model, cache and setting has a folder
    of prediction files of its own under `runs`, which a stopped run continues.
    Raises ValueError for `chat` with a tokenizer that has no chat template.
    """
    prompt_format = chat_format(tokenizer) if chat else as_it_is
    # Without it the settings are what they were before there was a choice: predictions made then are found.
    asked = {"chat_template": tokenizer.chat_template} if chat else {}
    by_model = {}
    for name, key, load in subjects:
        loaded = load()
        model: Any = merge_adapter(loaded) if isinstance(loaded, PeftModel) else loaded
        model.to(default_device()).eval()
        for cache, policy in policies.items():
            setting = {
                "model": key,
                "cache": policy_text(policy),
                "max_length": max_length,
                "max_new_tokens": max_new_tokens,
                "records": {n: [record.id for record in records] for n, records in sets.items()},
                **asked,
            }
            predict_set = partial(
                predict,
                model,
                tokenizer,
                max_length=max_length,
                max_new_tokens=max_new_tokens,
                cache_factory=None if policy is None else partial(BudgetCache, model, policy),
                prompt_format=prompt_format,
                progress=progress,
            )
            folder = runs / f"longbench-{json_hash(setting)[:16]}"
            by_model[name if policy is None else f"{name}, {cache}"] = {
                n: predict_set(records, n, out=folder / f"{n}.jsonl") for n, records in sets.items()
            }
    return by_model


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
