"""LongBench scores as its release computes them, and their averages as LongLoRA's benchmark table."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from sinklora.evaluate.longbench.records import Prediction, read_predictions
from sinklora.evaluate.longbench.tasks import (
    CATEGORIES,
    DATASETS,
    FIRST_LINE,
    SMALL,
    library_metrics,
    scored_as,
    task_of,
)
from sinklora.records.checks import check_value

NUMBERED = {
    "passage_retrieval_en": "Paragraph ",
    "passage_retrieval_zh": "段落",
}  # before a reference's number

Metric = Callable[[str, str, Sequence[str] | None], float]


def score(
    dataset: str,
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    all_classes: Sequence[str] | None = None,
) -> float:
    """Mean score, 0 to 100, of `predictions`, each by the best of its `answers`.

    `all_classes` are the labels of a classification (trec, lsht), otherwise None.
    Raises ValueError for an unknown data set, lists that are empty or of different lengths, or missing
    labels; ImportError naming the extra where lm-evaluation-harness is missing.
    """
    name = scored_as(dataset)
    metric = _metric(task_of(name).metric)
    if not predictions or len(predictions) != len(answers):
        raise ValueError(
            f"{len(predictions)} predictions and {len(answers)} lists of answers; expected as many, "
            "and at least one"
        )
    if task_of(name).metric == "classification_score" and not all_classes:
        raise ValueError(f"all_classes={all_classes!r}: {dataset} is scored by the labels there are")
    for index, references in enumerate(answers):
        check_references(name, references, f"answers[{index}]")
    if name in FIRST_LINE:
        predictions = [prediction.lstrip("\n").split("\n")[0] for prediction in predictions]

    def mean() -> float:
        best = [
            max(metric(prediction, reference, all_classes) for reference in references)
            for prediction, references in zip(predictions, answers, strict=True)
        ]
        return 100 * sum(best) / len(best)

    # ROUGE-L recurses a frame a word, and LongBench gives 0 where Python's limit ends that. A thread starts
    # with an empty stack, as LongBench's script does: a caller deep in a notebook gets the same scores.
    with ThreadPoolExecutor(max_workers=1) as shallow:
        return shallow.submit(mean).result()


def check_references(dataset: str, references: Sequence[str], place: str) -> None:
    """Raise ValueError naming `place` for right answers that the data set's metric cannot read."""
    if isinstance(references, str) or not references:
        raise ValueError(f"{place} is {references!r}; expected a list of at least one string")
    word = NUMBERED.get(scored_as(dataset))
    for reference in references:
        if word is not None and not re.search(rf"{word}\d", reference):
            raise ValueError(f"{place} has {reference!r:.80}; expected a number as in {word + '3'!r}")


def code_similarity(prediction: str, reference: str) -> float:
    """Similarity, 0 to 1, of the first line that is neither comment nor markup with the reference.

    The harness's version is not used. It skips blank lines, where LongBench skips only empty ones before the
    first text; and it takes fuzzywuzzy's ratio, which is difflib's or, where python-Levenshtein is
    installed, a larger one. Like fuzzywuzzy's, this one is in whole percent and 0 where either is empty.
    """
    lines = prediction.lstrip("\n").split("\n")
    code = (line for line in lines if not any(mark in line for mark in ("`", "#", "//")))
    line = next(code, "")
    if line == reference:
        return 1.0
    if not line or not reference:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, reference).ratio()) / 100


def score_file(dataset: str, path: str | Path) -> tuple[float, int]:
    """Score (0 to 100) of a file of predictions, and how many there are.

    Raises ValueError with file and line for a damaged line or an answer that the metric cannot read, and for
    a file without any.
    """
    predictions = read_predictions(path)
    if not predictions:
        raise ValueError(f"{path} has no predictions")
    for line, prediction in enumerate(predictions, 1):
        check_references(dataset, prediction.answers, f"{path}, line {line}: 'answers'")
    return score_predictions(dataset, predictions), len(predictions)


def score_predictions(dataset: str, predictions: Sequence[Prediction]) -> float:
    """`score` of predictions that carry their answers and labels."""
    # All records of a data set have the same labels.
    labels = predictions[-1].all_classes if predictions else None
    return score(dataset, [p.pred for p in predictions], [p.answers for p in predictions], labels)


def score_folder(folder: Path) -> pd.DataFrame:
    """Scores of the files `<data set>.jsonl` in `folder`, in LongBench's order: columns dataset, category,
    metric, predictions (how many), score (0 to 100).

    Raises FileNotFoundError where there is none, ValueError for one that names no data set or is damaged.
    """
    files = {path.stem: path for path in Path(folder).glob("*.jsonl")}
    if not files:
        raise FileNotFoundError(f"{folder} has no files named <data set>.jsonl")
    for name in files:
        scored_as(name)
    rows = []
    for name in [name for name in (*DATASETS, *SMALL) if name in files]:
        value, count = score_file(name, files[name])
        category = DATASETS[scored_as(name)].category
        metric = task_of(name).metric.removesuffix("_score")
        rows.append((name, category, metric, count, value))
    return pd.DataFrame(rows, columns=["dataset", "category", "metric", "predictions", "score"])


def category_table(scores: Mapping[str, float]) -> pd.DataFrame:
    """Averages (0 to 100) of `scores` (data set -> score) by category, laid out as LongLoRA's table.

    Rows: "English" (16 data sets, code among them, what LongLoRA and SinkLoRA report) and "All" (21); and
    where `scores` has any, "Small (generated)", which is not LongBench. Columns: the row's name, "Avg" (mean
    of the six categories, as published), then the categories. A category lacking any of its data sets is NaN,
    and so is its row's average: there are no partial ones.
    Raises ValueError for an unknown data set or a score outside 0 to 100.
    """
    for dataset, value in scores.items():
        scored_as(dataset)
        check_value(f"scores[{dataset!r}]", value, Annotated[float, Field(ge=0, le=100)])
    groups = {
        "English": {name: d.category for name, d in DATASETS.items() if d.language != "zh"},
        "All": {name: d.category for name, d in DATASETS.items()},
    }
    if any(name in SMALL for name in scores):
        groups["Small (generated)"] = {name: DATASETS[base].category for name, base in SMALL.items()}
    rows = []
    for label, members in groups.items():
        means = {
            category: _mean([scores.get(name, math.nan) for name, c in members.items() if c == category])
            for category in CATEGORIES
        }
        rows.append({"Data sets": label, "Avg": _mean(list(means.values())), **means})
    return pd.DataFrame(rows)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _metric(name: str) -> Metric:
    """The metric of one prediction and one reference. The harness's plain functions are LongBench's; its
    wrappers for whole records, which strip predictions and know nothing of first lines, are not used.
    """
    if name == "code_sim_score":
        return lambda prediction, reference, labels: code_similarity(prediction, reference)
    function = getattr(library_metrics(), name)
    return lambda prediction, reference, labels: float(function(prediction, reference, all_classes=labels))
