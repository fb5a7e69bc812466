"""Replay's constants, one at a time around the values that they have, on texts that nothing is tested on."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sinklora.cache.replay import Replay
from sinklora.evaluate.clustered_means import mean_interval
from sinklora.records.checks import check_among
from sinklora.records.tables import Column, Estimate, Number, Table, part
from sinklora.reproduction.cache.cell_estimates import paired
from sinklora.reproduction.cache.study import PERPLEXITY
from sinklora.reproduction.cache.text_study import FACTS_LATER, TextStudy, measure_text
from sinklora.train.sources import CorpusSpec

GRID: dict[str, tuple[float, ...]] = {
    "recent_share": (0.125, 0.25, 0.5, 0.75),
    "attention_weight": (1.5, 5.0, 15.0),
    "own_share": (0.0, 0.2, 0.5),
    "decay": (0.9, 0.97, 0.99),
    "sink_tokens": (1, 4, 16),
}

AS_IT_IS = "as it is"

MORE, GAINED = "nats more than as it is", "facts, share gained"


def variants(budget: float, constants: Sequence[str] = tuple(GRID)) -> dict[tuple[str, float], Replay]:
    """Replay with one of these constants changed to each other value of the grid, by constant and value."""
    given = Replay(budget)
    others = [(name, value) for name in constants for value in GRID[name] if value != getattr(given, name)]
    changed: dict[tuple[str, float], dict[str, Any]] = {
        (name, value): {name: value} for name, value in others
    }
    return {which: replace(given, **change) for which, change in changed.items()}


def measure_constants(
    study: TextStudy, corpus: CorpusSpec, budget: float, constants: Sequence[str], *, runs: Path
) -> pd.DataFrame:
    """The rows of `measure_text` under Replay as it is and under each of its `variants`, with the columns
    `constant` and `value of it`; as it is, both are missing.

    Raises ValueError for names that the grid does not have.
    """
    check_among("constants", constants, "GRID", list(GRID))
    changed = variants(budget, constants)
    named = {f"{name}={value:g}": (name, value) for name, value in changed}
    policies = {text: [changed[which]] for text, which in named.items()}
    rows = measure_text(study, corpus, {AS_IT_IS: [Replay(budget)], **policies}, runs=runs)
    measured = rows[rows.policy != "full"]
    which = measured.policy.map(named)
    told = measured.assign(**{"constant": which.str[0], "value of it": which.str[1]})
    told.attrs = rows.attrs
    return told


def constants_table(rows: pd.DataFrame) -> Table:
    """A line for each value of the grid: perplexity, nats more than as it is (paired by item, 95 % intervals
    over documents), share of facts given back when asked for later, and how much more that is.
    """
    lines = []
    for name in rows.constant.dropna().unique():
        for value in GRID[name]:
            of_value = rows[(rows.constant == name) & (rows["value of it"] == value)]
            policy = AS_IT_IS if of_value.empty else str(of_value.policy.iloc[0])
            lines.append(
                {"constant": name, "value": value, "chosen": "chosen" if policy == AS_IT_IS else ""}
                | _cells(rows, policy)
            )
    columns = [Column("constant"), Column("value"), Column("chosen"), Number("perplexity", ".2f")]
    return Table(pd.DataFrame(lines), [*columns, Estimate(MORE), Number("facts", ".3f"), Estimate(GAINED)])


def _cells(rows: pd.DataFrame, policy: str) -> dict[str, Any]:
    of_policy = rows[rows.policy == policy]
    means = of_policy.groupby("measure").value.mean()
    cells: dict[str, Any] = {
        "perplexity": float(np.exp(means[PERPLEXITY])),
        "facts": float(means[FACTS_LATER]),
    }
    if policy != AS_IT_IS:
        budget = of_policy.budget.iloc[0]
        for heading, measure, sign in ((MORE, PERPLEXITY, 1), (GAINED, FACTS_LATER, -1)):
            pairs = paired(rows, measure, AS_IT_IS, budget, policy)
            mean, low, high = mean_interval((sign * pairs.lead).tolist(), pairs.cluster.tolist())
            cells |= {heading: mean, part(heading, "low"): low, part(heading, "high"): high}
    return cells


def constants_in_words(table: Table) -> str:
    """Which value of each constant is the best, and whether the best lies inside of its grid."""
    told = []
    for name, lines in table.frame.groupby("constant", sort=False):
        by_value = lines.set_index("value")
        best = {"perplexity": by_value.perplexity.idxmin(), "facts": by_value.facts.idxmax()}
        chosen = by_value.index[by_value.chosen == "chosen"][0]
        ends = (by_value.index.min(), by_value.index.max())
        words = [
            f"{value:g} for {what}{' (an end)' if value in ends else ''}" for what, value in best.items()
        ]
        told.append(f"{name}, chosen {chosen:g}: best {', '.join(words)}")
    return "; ".join(told) + "."
