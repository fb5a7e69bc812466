"""Tables of Fig. 6: values with intervals by measure, policy and budget, and differences paired by item."""

import math
from collections.abc import Sequence

import pandas as pd

from sinklora.evaluate.statistics import Accuracy, interval
from sinklora.reproduction.cache.study import CHANCE, MEASURES, PERPLEXITY, RIVALS


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
            error, chance = value * float(values.std()) / math.sqrt(len(values)), "–"
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
    wide = wide.reindex(list(dict.fromkeys(found.policy))).fillna("–").reset_index()
    wide.columns.name = None
    return wide


def lead(rows: pd.DataFrame, measure: str, policy: str, rival: str, budget: float) -> "pd.Series[float]":
    """How much better a policy is than a rival, item by item: nats saved, or answers gained."""
    at = rows[(rows.measure == measure) & (rows.budget == budget)].pivot(
        index="item", columns="policy", values="value"
    )
    difference = at[policy] - at[rival]
    return -difference if measure == PERPLEXITY else difference


def duels(rows: pd.DataFrame, policy: str = "novelty", rivals: Sequence[str] = RIVALS) -> pd.DataFrame:
    """A policy against the best of its rivals at each budget, paired by item.

    ``lead`` in nats a token or share of answers, with its 95 % t-interval; ``worse`` where all of the
    interval is below 0.
    """
    lines = []
    for measure in measures(rows):
        mine = rows[rows.measure == measure]
        for budget in sorted(mine[mine.policy == policy].budget.unique()):
            means = mine[mine.budget == budget].groupby("policy").value.mean()[list(rivals)]
            best = means.idxmin() if measure == PERPLEXITY else means.idxmax()
            leads = lead(rows, measure, policy, best, budget)
            low, high = interval(leads)
            line = {"measure": measure, "budget": budget, "best rival": best, "lead": leads.mean()}
            lines.append({**line, "low": low, "high": high, "n": len(leads), "worse": high < 0})
    return pd.DataFrame(lines)
