"""Table 6 under each cache: real documents in LongBench's format and generated sets, one question a document
where there are enough, every score beside chance and beside the full cache's on the same questions.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase

from sinklora.evaluate.clustered_means import MeanInterval, mean_interval, share_interval
from sinklora.evaluate.longbench.metrics import score_predictions
from sinklora.evaluate.longbench.records import Prediction, Record
from sinklora.evaluate.longbench.tasks import DATASETS, scored_as
from sinklora.records.files import json_hash
from sinklora.records.tables import Column, Estimate, Number, Table, part
from sinklora.reproduction.longbench.study import chance, local_sets, make_synthetic_sets
from sinklora.reproduction.retrieval.bounded_caches import CANNOT, FULL
from sinklora.train.sources import CorpusSpec

LESS = "less than the full cache"

Made = Mapping[str, Mapping[str, Sequence[Prediction]]]  # by cache, then by data set


def spread_over_documents(records: Sequence[Record], most: int) -> list[Record]:
    """At most so many records, of as many documents as possible: each document's first question, in the order
    of the file, then each one's second.
    """
    by_document: dict[str, list[Record]] = {}
    for record in records:
        by_document.setdefault(record.context, []).append(record)
    turns = zip_longest(*by_document.values())
    return [record for turn in turns for record in turn if record is not None][:most]


def real_and_generated_sets(
    folder: Path | None, tokenizer: PreTrainedTokenizerBase, corpus: CorpusSpec, *, examples: int, tokens: int
) -> dict[str, list[Record]]:
    """At most `examples` records of every data set of LongBench that `folder` has a file of, and as many
    generated ones, of at most `tokens` tokens of prompt, for every category that those leave out.

    Without a folder all of the generated sets. Raises ValueError for records that cannot be read or scored.
    """
    names = [name for name in DATASETS if folder is not None and (folder / f"{name}.jsonl").is_file()]
    real = local_sets(str(folder), names)
    covered = {DATASETS[name].category for name in names}
    made = make_synthetic_sets(tokenizer, corpus, examples=examples, tokens=tokens, seed=0)
    left = {n: r for n, r in made.items() if DATASETS[scored_as(n)].category not in covered}
    return {name: spread_over_documents(records, examples) for name, records in real.items()} | left


def question_scores(sets: Mapping[str, Sequence[Record]], made: Made) -> pd.DataFrame:
    """One row a question and cache: `dataset`, `question` (its id), `document` (a hash of its context),
    `cache`, `score` (0 to 100), `wrote`.
    """
    rows: list[dict[str, Any]] = []
    for cache, by_set in made.items():
        for dataset, predictions in by_set.items():
            for record, prediction in zip(sets[dataset], predictions, strict=True):
                row = {"dataset": dataset, "question": record.id, "document": json_hash(record.context)[:12]}
                score = score_predictions(dataset, [prediction])
                rows.append({**row, "cache": cache, "score": score, "wrote": prediction.pred})
    return pd.DataFrame(rows)


def cache_table(scores: pd.DataFrame, made: Made) -> Table:
    """Data sets by caches: score (0 to 100), chance, and how much less than with the full cache, in pairs
    (95 % intervals over documents).

    Chance is the mean of the same answers shuffled over the records. `remark` marks data sets at which the
    full cache's score is within 95 % of its shuffles, and caches whose score is where the full cache's is
    not.
    """
    lines = []
    for dataset, group in scores.groupby("dataset", sort=False):
        name = str(dataset)
        full = group[group.cache == FULL].set_index("question").score
        measurable = full.mean() > chance(name, made[FULL][name])[1]
        for cache, of_cache in group.groupby("cache", sort=False):
            mean, high = chance(name, made[str(cache)][name])
            of_cache = of_cache.set_index("question")
            line: dict[str, Any] = {"data set": name, "category": DATASETS[scored_as(name)].category}
            line |= {"n": len(of_cache), "documents": of_cache.document.nunique(), "cache": cache}
            documents = of_cache.document.tolist()
            share = share_interval((of_cache.score / 100).tolist(), documents)
            line |= _estimate("score", MeanInterval(*(100 * end for end in share))) | {"chance": mean}
            if cache != FULL:
                less = full.loc[of_cache.index] - of_cache.score
                line |= _estimate(LESS, mean_interval(less.tolist(), documents))
            beyond = measurable and of_cache.score.mean() > high
            lines.append(line | {"remark": "" if beyond else "at chance" if measurable else CANNOT})
    columns = [Column(name) for name in ("data set", "category", "n", "documents", "cache")]
    shown = [*columns, Estimate("score"), Number("chance", ".2f"), Estimate(LESS), Column("remark")]
    return Table(pd.DataFrame(lines), shown)


def _estimate(heading: str, found: MeanInterval) -> dict[str, float]:
    return {heading: found.mean, part(heading, "low"): found.low, part(heading, "high"): found.high}


def cache_verdict(scores: pd.DataFrame, table: Table) -> str:
    """Over all data sets that can be measured: each bounded cache's loss, and H2O's lead over the others,
    paired by question, with 95 % intervals over documents; and every cache's mean with the other sets, too.
    """
    frame = table.frame
    lost = list(dict.fromkeys(frame[frame.remark == CANNOT]["data set"]))
    usable = scores[~scores.dataset.isin(lost)]
    tail = f" {CANNOT[0].upper()}{CANNOT[1:]}: {', '.join(lost)}; {_all_means(scores)}." if lost else ""
    if usable.empty:
        return tail.strip()
    wide = usable.pivot(index=["document", "question"], columns="cache", values="score")
    documents = wide.index.get_level_values("document").tolist()
    pairs = [(FULL, name) for name in wide.columns if name != FULL]
    pairs += [("H2O", name) for name in wide.columns if name not in (FULL, "H2O")]
    parts = [_lead(wide[first] - wide[second], documents, first, second) for first, second in pairs]
    return f"Over {usable.dataset.nunique()} data sets, {len(wide)} questions: {'; '.join(parts)}.{tail}"


def _all_means(scores: pd.DataFrame) -> str:
    """Every cache's mean score over all data sets, also those of which nothing can be said."""
    means = scores.groupby("cache", sort=False).score.mean()
    said = ", ".join(f"{cache} {mean:.1f}" for cache, mean in means.items())
    return f"with these, means over all {len(scores) // len(means)} questions are {said}"


def _lead(lead: "pd.Series[float]", documents: Sequence[str], first: str, second: str) -> str:
    mean, low, high = mean_interval(lead.tolist(), documents)
    words = "above" if low > 0 else "below" if high < 0 else "not surely different from"
    return f"{first} {words} {second} ({mean:+.1f}, {low:z.1f} to {high:z.1f})"
