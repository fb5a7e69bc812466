"""Pass keys counted: shares of exact answers by model and length (Fig. 5), and wrong answers."""

from collections.abc import Sequence

import pandas as pd

from sinklora.evaluate.statistics import Accuracy
from sinklora.reproduction.retrieval.model_under_test import interpolated_name


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


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Models by lengths, as text: share of exact answers and its interval."""
    found = accuracies(rows)
    cells = [
        f"{a:.2f} ({low:.2f} to {high:.2f})"
        for a, low, high in zip(found.accuracy, found.low, found.high, strict=True)
    ]
    wide = found.assign(cell=cells).pivot(index="model", columns="tokens", values="cell")
    wide = wide.reindex(list(dict.fromkeys(found.model)))
    wide.columns = [str(tokens) for tokens in wide.columns]
    return wide.reset_index()


def failures(rows: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """Some wrong answers of each model, the shortest documents first."""
    wrong = rows[~rows.correct.astype(bool)].sort_values("tokens", kind="stable")
    chosen = wrong.groupby("model", sort=False).head(count)
    return chosen[["model", "seed", "tokens", "depth", "answer", "wrote"]].reset_index(drop=True)


def only_interpolated(rows: pd.DataFrame, patterns: Sequence[str], further: int) -> pd.DataFrame:
    """The rows of the extensions interpolated further, under the names of their patterns."""
    names = {interpolated_name(pattern, further): pattern for pattern in patterns}
    mine = rows[rows.model.isin(names)]
    return mine.assign(model=mine.model.map(names))
