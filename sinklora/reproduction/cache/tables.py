"""Tables of Fig. 6: values with intervals by measure, policy and budget, and differences paired by item."""

import math
from typing import Any

import pandas as pd

from sinklora.evaluate.clustered_means import mean_interval
from sinklora.evaluate.statistics import Accuracy
from sinklora.records.tables import Column, Estimate, Number, Table, part
from sinklora.reproduction.cache.paired_outcomes import outcomes
from sinklora.reproduction.cache.study import CHANCE, MEASURES, PERPLEXITY, published_policies


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
            _, low, high = mean_interval(values.tolist())
            value, low, high = math.exp(values.mean()), math.exp(low), math.exp(high)
            error, chance = value * float(values.std()) / math.sqrt(len(values)), math.nan
        else:
            accuracy = Accuracy(int(values.sum()), len(values))
            value, (low, high) = accuracy.share, accuracy.interval()
            error, chance = math.sqrt(value * (1 - value) / len(values)), CHANCE[str(measure)]
        line = {"measure": measure, "policy": policy, "budget": budget, "eviction": "real"}
        line |= {"split": group.split.iloc[0], "value": value, "standard error": error}
        lines.append({**line, "low": low, "high": high, "n": len(values), "chance": chance})
    return pd.DataFrame(lines)


def summary_table(rows: pd.DataFrame) -> Table:
    """The lines of `summary` as they are written."""
    frame = summary(rows)
    columns = [Number(name) if name == "chance" else Column(name) for name in frame.columns]
    return Table(frame, columns)


def table(rows: pd.DataFrame, measure: str) -> Table:
    """Policies by budgets for one measure: value and 95 % interval."""
    values = summary(rows)
    values = values[values.measure == measure]
    budgets = {budget: f"{100 * budget:g} %" for budget in sorted(values.budget.unique())}
    lines = []
    for policy, of_policy in values.groupby("policy", sort=False):
        line: dict[str, Any] = {"policy": policy}
        for at in of_policy.itertuples():
            heading = budgets[at.budget]
            line |= {heading: at.value, part(heading, "low"): at.low, part(heading, "high"): at.high}
        lines.append(line)
    shown = [Estimate(heading) for heading in budgets.values()]
    return Table(pd.DataFrame(lines), [Column("policy"), *shown])


def lead(rows: pd.DataFrame, measure: str, policy: str, rival: str, budget: float) -> "pd.Series[float]":
    """How much better a policy is than a rival, item by item: nats saved, or answers gained."""
    at = rows[(rows.measure == measure) & (rows.budget == budget)].pivot(
        index="item", columns="policy", values="value"
    )
    difference = at[policy] - at[rival]
    return -difference if measure == PERPLEXITY else difference


def duels(rows: pd.DataFrame, policy: str = "novelty") -> pd.DataFrame:
    """A policy against the best of the published ones at each budget, paired by item.

    `lead` in nats a token or share of answers, with its 95 % t-interval; `outcome`: "better", "worse" or "not
    decided", with Holm's correction for all lines.
    """
    lines, compared = [], []
    against = published_policies()
    for measure in measures(rows):
        of_measure = rows[rows.measure == measure]
        for budget in sorted(of_measure[of_measure.policy == policy].budget.unique()):
            at_budget = of_measure[(of_measure.budget == budget) & of_measure.policy.isin(against)]
            means = at_budget.groupby("policy").value.mean()
            best = means.idxmin() if measure == PERPLEXITY else means.idxmax()
            leads = lead(rows, measure, policy, best, budget)
            mean, low, high = mean_interval(leads.dropna().tolist())
            line = {"measure": measure, "budget": budget, "best rival": best, "lead": mean}
            lines.append({**line, "low": low, "high": high, "n": len(leads)})
            compared.append(leads.to_numpy())
    return pd.DataFrame(lines).assign(outcome=outcomes(compared))
