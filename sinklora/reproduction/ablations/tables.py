"""Tables of sweeps, lengths and schedules (Table 9; the others are ours): numbers by method."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sinklora.evaluate.paired_effects import ratio
from sinklora.records.tables import Column, Number, Spread, Table
from sinklora.reproduction.extension.comparison import Losses
from sinklora.reproduction.extension.tables import ABOVE, Nats, Share, estimate_fields
from sinklora.reproduction.report.published import published_value
from sinklora.reproduction.report.summaries import mean_and_sd

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


def published(item: str) -> dict[str, float]:
    """The paper's values of a key of PAPER_ROWS, by our names of methods."""
    return {method: published_value(item, row) for method, row in PAPER_ROWS[item].items()}


def condition_table(
    measured: Mapping[str, Losses],
    untrained: Mapping[str, Mapping[str, str]],
    methods: Sequence[str],
    costs: Mapping[str, Mapping[str, float]],
) -> Table:
    """The same methods under several conditions (contexts), side by side, below what needs no training.

    `measured`: what the condition is called -> losses at its context; `untrained`: a line's name -> what it
    is called in each condition; `costs`: the conditions' names -> attention cost by method in that
    condition's training, since sinks weigh more in shorter rows. Raises ValueError for other names.
    """
    if set(costs) != set(measured):
        raise ValueError(f"costs={sorted(costs)}: expected those of the conditions, {sorted(measured)}")
    lines, columns = [], [Column("trained with")]
    called = {**untrained, **{method: dict.fromkeys(measured, method) for method in methods}}
    for title, by_condition in called.items():
        line: dict[str, Any] = {"trained with": title}
        for name, losses in measured.items():
            method = by_condition[name]
            line |= mean_and_sd(f"{name}: perplexity", losses.perplexities(method))
            if method != "full":
                line |= estimate_fields(f"{name}: {ABOVE}", losses.lead("full", method))
            line |= {f"{name}: attention cost": costs[name].get(method)}
        lines.append(line)
    for name in measured:
        columns += [Spread(f"{name}: perplexity"), Nats(f"{name}: {ABOVE}")]
        columns.append(Number(f"{name}: attention cost", ".4f"))
    return Table(pd.DataFrame(lines), columns)


def sweep_table(found: Losses, field: str, methods: Mapping[float, str], costs: Mapping[str, float]) -> Table:
    """One row a value of a field: its cost, nats above full attention.

    `methods`: value -> the method that has it.
    """
    lines = []
    for value, method in methods.items():
        line: dict[str, Any] = {field: value, "name": method, "attention cost": costs[method]}
        line |= mean_and_sd("perplexity", found.perplexities(method))
        lines.append(line | estimate_fields(ABOVE, found.lead("full", method)))
    columns = [
        Number(field),
        Column("name"),
        Number("attention cost", ".4f"),
        Spread("perplexity"),
        Nats(ABOVE),
    ]
    return Table(pd.DataFrame(lines), columns)


def schedule_table(found: Losses, methods: Sequence[str], costs: Mapping[str, float]) -> Table:
    """What closes how much of SF-Attn's gap to full attention, and at what cost beside SF-Attn's."""
    closed = "of SF-Attn's gap closed (%)"
    lines = []
    for method in methods:
        line: dict[str, Any] = {"trained with": method, "attention cost": costs[method]}
        line |= {"cost, times SF-Attn's": costs[method] / costs["sf"]}
        line |= mean_and_sd("perplexity", found.perplexities(method))
        line |= estimate_fields(ABOVE, found.lead("full", method))
        if method != "sf":
            losses = (found.by_method[name] for name in ("sf", "full", method))
            share = ratio(
                lambda sf, full, scheduled: sf - scheduled, lambda sf, full, scheduled: sf - full, *losses
            )
            line |= estimate_fields(closed, share, scale=100)
        lines.append(line)
    columns = [Column("trained with"), Number("attention cost", ".4f")]
    columns += [Number("cost, times SF-Attn's", ".2f"), Spread("perplexity"), Nats(ABOVE), Share(closed)]
    return Table(pd.DataFrame(lines), columns)
