"""Estimates of Fig. 6 from rows with clusters: values, paired differences, and what they say of H2O.

The interval of every mean is over clusters (documents, passages, questions), so that items of one cluster do
not count as independent.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from sinklora.evaluate.clustered_means import MeanInterval, mean_interval, share_interval
from sinklora.records.tables import Column, Estimate, Table, part
from sinklora.reproduction.cache.paired_outcomes import outcomes
from sinklora.reproduction.cache.study import CHANCE, PERPLEXITY, QUESTIONS
from sinklora.reproduction.cache.text_study import FACTS, FACTS_LATER, NATS
from sinklora.reproduction.cache.verdict import percents

ORDER = (PERPLEXITY, QUESTIONS, FACTS, FACTS_LATER, FACTS + NATS, FACTS_LATER + NATS)

RIVALS = ("streaming", "local")

NOT_MEASURED = "cannot be measured with this model"


def smaller_is_better(measure: str) -> bool:
    """Whether a measure is in nats, of which less is better."""
    return measure == PERPLEXITY or measure.endswith(NATS)


def clustered(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a `cluster`: where they have none, each item is its own."""
    if "cluster" not in rows:
        return rows.assign(cluster=rows["item"])
    return rows.assign(cluster=rows.cluster.fillna(rows["item"]))


def level_interval(measure: str, rows: pd.DataFrame) -> MeanInterval:
    """The mean of a measure's values over clusters, with its 95 % interval: a share of answers, or nats."""
    interval = mean_interval if smaller_is_better(measure) else share_interval
    return interval(rows.value.tolist(), rows.cluster.tolist())


def estimates(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per measure, policy and budget: value, 95 % interval, items, clusters, chance, note.

    Perplexities are exponents of the mean nats. A measure in which the full cache's interval holds chance is
    noted as one that cannot be measured; under a budget such a line is "at chance".
    """
    lines = []
    for measure, policy, budget, group in _groups(clustered(rows)):
        mean, low, high = level_interval(measure, group)
        chance = chance_of(measure, group)
        scale = math.exp if measure == PERPLEXITY else float
        line = {"measure": measure, "policy": policy, "budget": budget, "split": group.split.iloc[0]}
        line |= {"value": scale(mean), part("value", "low"): scale(low)}
        line |= {part("value", "high"): scale(high), "items": len(group), "chance": chance}
        note = _note(low, high, chance, measure, policy)
        lines.append({**line, "clusters": group.cluster.nunique(), "note": note})
    return pd.DataFrame(lines)


def _note(low: float, high: float, chance: float, measure: str, policy: str) -> str:
    """How an interval lies to chance: empty where it is better, or chance is not known."""
    better, worse = (high, low) if smaller_is_better(measure) else (low, high)
    sign = -1 if smaller_is_better(measure) else 1
    if math.isnan(chance) or sign * (better - chance) > 0:
        return ""
    if policy == "full":
        return NOT_MEASURED
    return "worse than chance" if sign * (worse - chance) < 0 else "at chance"


def estimates_table(rows: pd.DataFrame) -> Table:
    """The lines of `estimates` as they are written."""
    plain = ("items", "clusters", "chance", "note")
    shown = [Column(name) for name in ("measure", "policy", "budget", "split")]
    return Table(estimates(rows), [*shown, Estimate("value"), *(Column(name) for name in plain)])


def differences(rows: pd.DataFrame, policy: str = "h2o", rivals: Sequence[str] = RIVALS) -> pd.DataFrame:
    """How much better a policy is than others at each budget and than the full cache, paired by item.

    `lead`: nats saved (a token, or an answer) or share of answers gained, with its 95 % interval (a share has
    none where no document differs from another), and the outcome: "better", "worse" or "not decided", by
    Student's t over the means of clusters, with Holm's correction for all lines together. Budgets at which
    only one of the two was measured have no line.
    """
    by_cluster = clustered(rows)
    pairs = [
        (measure, budget, rival, paired(by_cluster, measure, policy, budget, rival))
        for measure, name, budget, _ in _groups(by_cluster)
        if name == policy
        for rival in (*rivals, "full")
        if ((by_cluster.measure == measure) & (by_cluster.policy == rival)).any()
    ]
    pairs = [pair for pair in pairs if len(pair[-1])]
    means = [pair.groupby("cluster").lead.mean().to_numpy() for *_, pair in pairs]
    lines = []
    for (measure, budget, rival, pair), word in zip(pairs, outcomes(means), strict=True):
        lead, low, high = mean_interval(pair.lead.tolist(), pair.cluster.tolist())
        if low == high and not smaller_is_better(measure):  # says nothing of how others would differ
            low = high = math.nan
        line = {"measure": measure, "budget": budget, "policy": policy, "against": rival}
        line |= {"lead": lead, part("lead", "low"): low, part("lead", "high"): high}
        lines.append({**line, "items": len(pair), "outcome": word})
    return pd.DataFrame(lines)


def differences_of_models(
    rows_by_model: Mapping[str, pd.DataFrame], seeds: Mapping[str, Sequence[int]]
) -> pd.DataFrame:
    """The lines of `differences` of several models, told apart by a column `model`.

    Its `attrs` record what they were made of: of each model `data` with its `seeds`, all `runs`, all `seeds`.
    """
    frames = [differences(rows).assign(model=model) for model, rows in rows_by_model.items()]
    cells = pd.concat(frames, ignore_index=True)
    attrs = {model: rows.attrs for model, rows in rows_by_model.items()}
    cells.attrs["data"] = {
        model: {**record.get("data", {}), "seeds": list(seeds[model])} for model, record in attrs.items()
    }
    cells.attrs["runs"] = [run for record in attrs.values() for run in record.get("runs", ())]
    cells.attrs["seeds"] = sorted({seed for model in attrs for seed in seeds[model]})
    return cells


def differences_table(cells: pd.DataFrame) -> Table:
    """Lines of `differences` as they are written, of one model or several (column `model`), one
    prompt or several (column `prompt`).
    """
    names = [name for name in ("model", "prompt", "measure", "budget", "policy", "against") if name in cells]
    shown = [Column(name) for name in names]
    return Table(cells, [*shown, Estimate("lead"), Column("items"), Column("outcome")])


def leads_in_words(rows: pd.DataFrame) -> str:
    """At which budgets H2O is better or worse than its rivals, by measure; what cannot be measured."""
    cells, levels = differences(rows), estimates(rows)
    unmeasured = set(levels[levels.note == NOT_MEASURED].measure)
    rivals = cells[(cells.against != "full") & ~cells.measure.isin(unmeasured)]
    told = [f"{measure}: {_told(group)}." for measure, group in rivals.groupby("measure", sort=False)]
    left = [f"{measure}: {NOT_MEASURED}." for measure in ORDER if measure in unmeasured]
    return " ".join([*told, *left])


def _told(cells: pd.DataFrame) -> str:
    parts = []
    for rival, lines in cells.groupby("against", sort=False):
        by_word = [
            f"{word} at {percents(sorted(lines[lines.outcome == word].budget))}"
            for word in ("better", "worse")
            if (lines.outcome == word).any()
        ]
        parts.append(f"against {rival} {', '.join(by_word) or 'nowhere decided'}")
    return "; ".join(parts)


def _groups(rows: pd.DataFrame) -> Iterator[tuple[str, str, float, pd.DataFrame]]:
    """Rows of each measure (in ORDER, others after), policy and budget."""
    names = [m for m in ORDER if m in set(rows.measure)]
    names += [m for m in dict.fromkeys(rows.measure) if m not in names]
    for measure in names:
        for (policy, budget), group in rows[rows.measure == measure].groupby(
            ["policy", "budget"], sort=False
        ):
            yield str(measure), str(policy), float(str(budget)), group


def chance_of(measure: str, group: pd.DataFrame) -> float:
    """What guessing gives in rows of a measure; NaN where that says nothing."""
    if "chance" in group and group.chance.notna().any():
        return float(group.chance.mean())
    return CHANCE.get(measure, math.nan)


def paired(rows: pd.DataFrame, measure: str, policy: str, budget: float, rival: str) -> pd.DataFrame:
    """How much better a policy is than a rival at a budget, by each item of both: `lead`, and its `cluster`.

    A rival called "full" is the whole cache, whatever the budget.
    """
    of = rows[rows.measure == measure].set_index("item")
    own = of[(of.policy == policy) & (of.budget == budget)]
    other = of[(of.policy == rival) & (of.budget == (1.0 if rival == "full" else budget))]
    lead = own.value - other.value
    lead = -lead if smaller_is_better(measure) else lead
    return pd.DataFrame({"lead": lead, "cluster": own.cluster}).dropna(subset="lead")
