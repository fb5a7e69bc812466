"""Right answers counted: shares by model and length (Fig. 5, Table 4), and what was answered instead."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sinklora.evaluate.statistics import Accuracy
from sinklora.records.tables import Column, Estimate, Table, part
from sinklora.reproduction.model_under_test import interpolated_name


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of exact answers by model and length over all seeds and depths, with 95 % Wilson intervals."""
    lines = []
    for (model, tokens), group in rows.groupby(["model", "tokens"], sort=False):
        accuracy = Accuracy(int(group.correct.sum()), len(group))
        low, high = accuracy.interval()
        seeds = max(1, group.seed.nunique())
        line = {"model": model, "tokens": tokens, "accuracy": accuracy.share, "low": low, "high": high}
        lines.append({**line, "trials": len(group), "seeds": seeds})
    return pd.DataFrame(lines)


def table(rows: pd.DataFrame) -> Table:
    """Models by lengths: share of exact answers with its 95 % Wilson interval."""
    by_model: dict[str, dict[str, Accuracy]] = {}
    for (model, tokens), group in rows.groupby(["model", "tokens"], sort=False):
        accuracy = Accuracy(int(group.correct.sum()), len(group))
        by_model.setdefault(str(model), {})[str(tokens)] = accuracy
    return accuracy_table(by_model, [str(tokens) for tokens in sorted(rows.tokens.unique())])


def topic_table(by_model: Mapping[str, Mapping[str, Accuracy]], chance: Mapping[str, float]) -> Table:
    """Models by lengths: share of first topics given, and under it what naming any topic would give."""
    answered = accuracy_table(by_model, list(chance))
    any_topic = pd.DataFrame([{"model": "any topic of the record", **chance}])
    return Table(pd.concat([answered.frame, any_topic], ignore_index=True), answered.columns)


def accuracy_table(by_model: Mapping[str, Mapping[str, Accuracy]], headings: Sequence[str]) -> Table:
    """One row a model, one column a heading: share, the ends of its interval, and the number of trials."""
    lines = []
    for model, by_heading in by_model.items():
        line: dict[str, Any] = {"model": model}
        for heading in headings:
            accuracy = by_heading[heading]
            low, high = accuracy.interval()
            line |= {heading: accuracy.share, part(heading, "low"): low, part(heading, "high"): high}
            line |= {part(heading, "n"): accuracy.trials}
        lines.append(line)
    frame = pd.DataFrame(lines).astype({part(heading, "n"): "Int64" for heading in headings})
    return Table(frame, [Column("model"), *(Estimate(heading) for heading in headings)])


def failures(rows: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """Some wrong answers of each model, the shortest documents first."""
    wrong = rows[~rows.correct.astype(bool)].sort_values("tokens", kind="stable")
    chosen = wrong.groupby("model", sort=False).head(count)
    return chosen[["model", "seed", "tokens", "depth", "answer", "wrote"]].reset_index(drop=True)


def only_interpolated(rows: pd.DataFrame, patterns: Sequence[str], further: int) -> pd.DataFrame:
    """The rows of the extensions interpolated further, under the names of their patterns."""
    names = {interpolated_name(pattern, further): pattern for pattern in patterns}
    interpolated = rows[rows.model.isin(names)]
    return interpolated.assign(model=interpolated.model.map(names))
