"""Tables of ablations, sweeps and schedules (Tables 7, 8, 9; the schedules are ours): numbers by method.

`rows` are those of `extension.measure`; everything is paired by seed and judged at one test context. Means
come with standard deviations over seeds, differences with their 95 % t-intervals.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sinklora.records.tables import Column, Interval, Number, Spread, Table
from sinklora.reproduction.ablations.by_seed import closed_gap, perplexities
from sinklora.reproduction.report.published import published_value
from sinklora.reproduction.report.summaries import mean_and_sd, mean_sd_interval

NONE: "pd.Series[float]" = pd.Series(dtype=float)  # of a method that was not measured, or of itself

GAP, GAP_INTERVAL = "gap to full", "95 % interval of the gap"

TABLE_7 = {
    "s2_wrapped": "S2-Attn",
    "short": "S2-Attn + S&R",
    "sf_shifted": "S2-Attn + global",
    "sf": "SF-Attn",
}
TABLE_8 = {
    "s2_wrapped": "S2-Attn",
    "shift_up": "shift up only",
    "shift_back": "shift back only",
    "short": "S&R",
}
PAPER_ROWS: Mapping[str, Mapping[str, str]] = {"Table 7": TABLE_7, "Table 8": TABLE_8}
"""Which row of the paper's table a method here stands for."""


def ablation_table(
    rows: pd.DataFrame, context: int, labels: Mapping[str, str], *, reference: str, item: str
) -> Table:
    """One row a method: perplexity, gap to full attention, lead over the `reference` method.

    `labels`: method -> what to call it; `item`: a key of PAPER_ROWS, whose published values stand at the
    right. A method without measurements has no values.
    """
    by_seed = perplexities(rows, context)
    perplexity, lead = f"perplexity at {context}", f"lower than {reference} by"
    lines = []
    for method, label in labels.items():
        values = by_seed.get(method, NONE)
        gaps = NONE if method == "full" else values - by_seed.full
        leads = NONE if method == reference else by_seed[reference] - values
        line: dict[str, Any] = {"attention in training": label, "name": method}
        line |= mean_and_sd(perplexity, values) | mean_sd_interval(GAP, gaps) | mean_sd_interval(lead, leads)
        paper_row = PAPER_ROWS[item].get(method)
        line |= {"seeds": int(values.count()), "paper": paper_row and published_value(item, paper_row)}
        lines.append(line)
    columns = [
        Column("attention in training"),
        Column("name"),
        Spread(perplexity),
        Spread(GAP),
        Interval(GAP_INTERVAL, of=GAP),
        Spread(lead),
        Interval("95 % interval", of=lead),
        Column("seeds"),
        Number("paper", ".2f"),
    ]
    return Table(pd.DataFrame(lines).astype({"paper": float}), columns)


def condition_table(
    measured: Mapping[str, pd.DataFrame],
    methods: Sequence[str],
    costs: Mapping[str, Mapping[str, float]],
) -> Table:
    """The same methods under several conditions (contexts, steps, learning rates), side by side.

    `measured`: what the condition is called -> rows, judged at the longest context they were tested at;
    `costs`: the same names -> `attention_costs` of that condition's training, since sinks weigh more in
    shorter rows and a schedule's shares are rounded to whole steps. Raises ValueError for other names.
    """
    if set(costs) != set(measured):
        raise ValueError(f"costs={sorted(costs)}: expected those of the conditions, {sorted(measured)}")
    conditions = {name: perplexities(rows, int(rows.context.max())) for name, rows in measured.items()}
    lines, columns = [], [Column("trained with")]
    for method in methods:
        line: dict[str, Any] = {"trained with": method}
        for name, by_seed in conditions.items():
            values = by_seed.get(method, NONE)
            line |= mean_and_sd(f"{name}: perplexity", values)
            line |= mean_and_sd(f"{name}: {GAP}", NONE if method == "full" else values - by_seed.full)
            line |= {f"{name}: attention cost": costs[name][method], f"{name}: seeds": int(values.count())}
        lines.append(line)
    for name in conditions:
        columns += [Spread(f"{name}: perplexity"), Spread(f"{name}: {GAP}")]
        columns.append(Number(f"{name}: attention cost", ".4f"))
    return Table(pd.DataFrame(lines), columns)


def sweep_table(
    rows: pd.DataFrame, context: int, field: str, methods: Mapping[float, str], costs: Mapping[str, float]
) -> Table:
    """One row a value of a field: attention cost, gap to full attention with its interval.

    `methods`: value of the field -> the method that has it.
    """
    by_seed = perplexities(rows, context)
    perplexity = f"perplexity at {context}"
    lines = []
    for value, method in methods.items():
        gaps = by_seed[method] - by_seed.full
        line: dict[str, Any] = {field: value, "name": method, "attention cost": costs[method]}
        line |= mean_and_sd(perplexity, by_seed[method]) | mean_sd_interval(GAP, gaps)
        lines.append({**line, "seeds": int(gaps.count())})
    columns = [Number(field), Column("name"), Column("attention cost"), Spread(perplexity), Spread(GAP)]
    columns += [Interval(GAP_INTERVAL, of=GAP), Column("seeds")]
    return Table(pd.DataFrame(lines), columns)


def schedule_table(
    rows: pd.DataFrame, context: int, methods: Sequence[str], costs: Mapping[str, float]
) -> Table:
    """What closes how much of SF-Attn's gap to full attention, and at what cost beside SF-Attn's."""
    by_seed = perplexities(rows, context)
    perplexity, share = f"perplexity at {context}", "of SF-Attn's gap closed (%)"
    lines = []
    for method in methods:
        closed = closed_gap(rows, context, method)
        line: dict[str, Any] = {"trained with": method, "attention cost": costs[method]}
        line |= {"cost, times SF-Attn's": costs[method] / costs["sf"]}
        line |= mean_and_sd(perplexity, by_seed[method]) | mean_and_sd(GAP, by_seed[method] - by_seed.full)
        lines.append({**line, **mean_sd_interval(share, closed), "seeds": int(closed.count())})
    columns = [Column("trained with"), Column("attention cost"), Column("cost, times SF-Attn's")]
    columns += [Spread(perplexity), Spread(GAP), Spread(share, digits=1)]
    columns += [Interval("95 % interval (%)", of=share), Column("seeds")]
    return Table(pd.DataFrame(lines), columns)
