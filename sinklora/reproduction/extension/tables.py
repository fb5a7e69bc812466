"""Tables 1, 2 and 3: perplexity by test context, what is made of it, and the published values under it."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sinklora.records.tables import Column, Interval, Number, Spread, Table, part
from sinklora.reproduction.extension.comparison import comparisons, of_test_set
from sinklora.reproduction.names import UNTRAINED
from sinklora.reproduction.report.summaries import mean_and_sd, mean_sd_interval

METHOD, GAP, GAIN, SHARE = "trained with", "gap to full", "gain from context", "share of improvement (%)"


def table(rows: pd.DataFrame, test_set: str, methods: Sequence[str], original: int, target: int) -> Table:
    """Perplexity by context and the three comparisons: mean and standard deviation over seeds.

    The gap's 95 % t-interval is shown where a method has two seeds or more. Not measured is missing; full
    attention has no gap to itself and all of its own improvement. Raises ValueError for a test set or context
    that was not measured.
    """
    chosen = of_test_set(rows, test_set)
    compared = comparisons(chosen, original, target)
    lines = [_line(chosen, compared, method) for method in (UNTRAINED, *methods)]
    frame = pd.DataFrame(lines).astype({"seeds": "Int64"})
    contexts = [Spread(str(context)) for context in sorted(rows.context.unique())]
    has_interval = frame[part(GAP, "low")].notna().any()
    interval = [Interval("95 % interval of the gap", of=GAP)] if has_interval else []
    last = [Spread(GAIN), Spread(SHARE, digits=1), Number("seeds", "d")]
    return Table(frame, [Column(METHOD), *contexts, Spread(GAP), *interval, *last])


def _line(rows: pd.DataFrame, compared: pd.DataFrame, method: str) -> dict[str, Any]:
    measured, gains = rows[rows.method == method], compared[compared.method == method]
    line: dict[str, Any] = {METHOD: method}
    for context in sorted(rows.context.unique()):
        line |= mean_and_sd(str(context), measured[measured.context == context].perplexity)
    of_full = method == "full"
    return line | {
        **mean_sd_interval(GAP, gains.gap_to_full[:0] if of_full else gains.gap_to_full),
        **mean_and_sd(GAIN, gains.gain_from_context),
        **mean_and_sd(SHARE, 100 * (gains.share[:0] if of_full else gains.share)),
        "seeds": len(gains) or None,
    }


def with_paper(measured: Table, published: pd.DataFrame, target: int) -> Table:
    """A `table` with the published rows under it, each value in the column of the same share of its target.

    The paper's target is its longest length: 4096 of its 8192 tokens stands under 1024 of a `target` of 2048;
    a length without a column is left out. `published` comes from `paper_values`. Perplexities of other models
    on other text: their fall from left to right compares, their level does not.
    """
    lines = []
    trained_at = published.column.astype(int).max()
    for row, values in published.groupby("row", sort=False):
        where = f"at {', '.join(values.column)} of {trained_at} tokens"
        line: dict[str, Any] = {METHOD: f"paper: {row}, {where}"}
        for length, value in zip(values.column, values.value, strict=True):
            place, rest = divmod(int(length) * target, trained_at)
            if not rest and str(place) in measured.frame:
                line[str(place)] = float(value)
        lines.append(line)
    under = pd.DataFrame(lines).reindex(columns=measured.frame.columns)
    frame = pd.concat([measured.frame, under.astype(measured.frame.dtypes)], ignore_index=True)
    return Table(frame, measured.columns)
