"""Tables 1, 2 and 3, and those of the ablations: perplexity, and nats beside full attention's."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sinklora.evaluate.paired_effects import Effect, difference
from sinklora.records.tables import Column, Estimate, Number, Spread, Table, part
from sinklora.reproduction.extension.comparison import Losses, losses
from sinklora.reproduction.extension.readings import OWN
from sinklora.reproduction.extension.selection import RATES, chosen_rates, mean_losses, untrained_losses
from sinklora.reproduction.report.summaries import mean_and_sd

NOT_READ: "pd.Series[float]" = pd.Series(dtype=float)

METHOD, SAVED, ABOVE, SHARE = "trained with", "nats below no training", "nats above full", "share (%)"

LONGER = "nats gained by context"


class OrDiverged(Column):
    """A column of losses, infinite where the training diverged."""

    def written(self, *values: Any) -> str:
        return "diverged" if values[0] == math.inf else super().written(*values)


class NumberOrDiverged(OrDiverged, Number):
    """The same in a format of its own."""


def untrained_methods(rows: pd.DataFrame) -> list[str]:
    """What needs no training, the base as it is first."""
    return list(dict.fromkeys(rows[rows.seed.isna()].method))


def extension_table(
    rows: pd.DataFrame,
    test_set: str,
    methods: Sequence[str],
    target: int,
    start: str,
) -> Table:
    """Tables 1 and 2, and the ladder of Table 3: one line a method, what needs no training first.

    Perplexity by context (mean ± standard deviation over seeds), and at the target nats below the best of no
    training (`start`), nats above full attention, the share of its improvement, and nats below the same
    model's in the shortest context, with 95 % intervals over seeds and pieces of text.
    """
    contexts = sorted(map(int, rows.context.unique()))
    by_context = {context: losses(rows, test_set, context) for context in contexts}
    measured, untrained = by_context[target], untrained_methods(rows)
    read = set(zip(rows.method, rows.context, strict=True))  # the base as it is in its own windows alone
    lines = []
    for method in [*untrained, *(name for name in methods if name in measured.by_method)]:
        line: dict[str, Any] = {METHOD: method}
        for context in contexts:
            at_context = by_context[context] if (method, context) in read else None
            line |= mean_and_sd(str(context), at_context.perplexities(method) if at_context else NOT_READ)
        if method != start:
            line |= estimate_fields(SAVED, measured.lead(method, start))
        if method != "full":
            line |= estimate_fields(ABOVE, measured.lead("full", method))
        if method not in untrained:
            line |= estimate_fields(SHARE, measured.share(method, start), scale=100)
        if {(method, contexts[0]), (method, target)} <= read and contexts[0] < target:
            shortest = by_context[contexts[0]].by_method[method]
            line |= estimate_fields(LONGER, difference(shortest, measured.by_method[method]))
        lines.append({**line, "seeds": 0 if method in untrained else len(measured.by_method[method])})
    frame = pd.DataFrame(lines)
    shown: list[Column] = [Column(METHOD), *(Spread(str(context)) for context in contexts)]
    gained = [Nats(LONGER)] if LONGER in frame else []
    return Table(frame, [*shown, Nats(SAVED), Nats(ABOVE), Share(SHARE), *gained, Number("seeds", "d")])


def shares_table(rows: pd.DataFrame, test_set: str, methods: Sequence[str], target: int) -> Table:
    """The share of full attention's improvement (%) by what it improves on: a line for each way not to train.

    With 95 % intervals over seeds and pieces of text; none where full attention may improve on nothing.
    """
    measured = losses(rows, test_set, target)
    lines = []
    for start in untrained_methods(rows):
        line: dict[str, Any] = {"improvement on": start}
        line |= estimate_fields("nats saved by full", measured.lead("full", start))
        for method in methods:
            line |= estimate_fields(method, measured.share(method, start), scale=100)
        lines.append(line)
    columns = [Column("improvement on"), Nats("nats saved by full"), *(Share(name) for name in methods)]
    return Table(pd.DataFrame(lines), columns)


class Nats(Estimate):
    """An estimate with three decimals and its sign: "+0.034 (+0.021 to +0.047)"."""

    def written(self, *values: Any) -> str:
        return _written(values, "+z.3f")


class Share(Estimate):
    """A share in per cent: "89 (84 to 95)"."""

    def written(self, *values: Any) -> str:
        return _written(values, "z.0f")


def _written(values: Sequence[Any], form: str) -> str:
    value, low, high = (None if pd.isna(x) else format(x, form) for x in values)
    if value is None:
        return "–"
    return value if low is None else f"{value} ({low} to {high})"


def by_positions(parts: Mapping[str, Table | pd.DataFrame]) -> Table:
    """The tables of several kinds of positions under each other, the kind in the first column."""
    tables = {
        kind: content if isinstance(content, Table) else Table(content) for kind, content in parts.items()
    }
    frames = [table.frame.assign(positions=kind) for kind, table in tables.items()]
    columns = next(iter(tables.values())).columns
    return Table(pd.concat(frames, ignore_index=True), [Column("positions"), *columns])


def own_attention_table(
    rows: pd.DataFrame, own: pd.DataFrame, test_set: str, context: int, methods: Sequence[str]
) -> Table:
    """Perplexity of each method read with full attention, and with its own; nats that its own adds.

    First what needs no training, which has no attention of its own.
    """
    of_full, of_own = losses(rows, test_set, context), losses(own, test_set, context, OWN)
    untrained = [name for name in untrained_methods(rows) if name in of_full.by_method]
    lines = [
        {METHOD: name} | mean_and_sd("with full attention", of_full.perplexities(name)) for name in untrained
    ]
    for method in methods:
        line: dict[str, Any] = {METHOD: method}
        line |= mean_and_sd("with full attention", of_full.perplexities(method))
        line |= mean_and_sd("with its own", of_own.perplexities(method))
        added = difference(of_own.by_method[method], of_full.by_method[method])
        lines.append(line | estimate_fields("nats added", added))
    shown: list[Column] = [Column(METHOD), Spread("with full attention"), Spread("with its own")]
    return Table(pd.DataFrame(lines), [*shown, Nats("nats added")])


def estimate_fields(heading: str, found: Effect, scale: float = 1) -> dict[str, float]:
    """The fields of an `Estimate`."""
    return {
        heading: scale * found.estimate,
        part(heading, "low"): scale * found.low,
        part(heading, "high"): scale * found.high,
    }


def comparison_table(
    found: Losses,
    labels: Mapping[str, str],
    reference: str,
    costs: Mapping[str, float],
    published: Mapping[str, float] | None = None,
) -> Table:
    """One line a method: perplexity, nats above full attention, nats below a `reference`, attention cost.

    `labels`: method -> what to call it; one without a cost needs no training. `published`: the paper's
    values, in a column of their own.
    """
    below = f"nats below {reference}"
    lines = []
    for method, label in labels.items():
        line: dict[str, Any] = {"attention in training": label, "name": method}
        line |= mean_and_sd("perplexity", found.perplexities(method))
        if method != "full":
            line |= estimate_fields(ABOVE, found.lead("full", method))
        if method != reference:
            line |= estimate_fields(below, found.lead(method, reference))
        seeds = len(found.by_method[method]) if method in costs else 0
        line |= {"attention cost": costs.get(method), "seeds": seeds}
        line |= {"paper": published.get(method)} if published else {}
        lines.append(line)
    columns = [Column("attention in training"), Column("name"), Spread("perplexity"), Nats(ABOVE)]
    columns += [Nats(below), Number("attention cost", ".4f"), Column("seeds")]
    columns += [Number("paper", ".2f")] if published else []
    return Table(pd.DataFrame(lines), columns)


def rates_table(rows: pd.DataFrame) -> Table:
    """Validation perplexity by method and learning rate; first, what needs no training, the best in front.

    Of several rates of a method the best is `chosen`.
    """
    untrained = untrained_losses(rows)
    means = mean_losses(rows).assign(perplexity=lambda frame: frame.nll.map(math.exp))
    chosen = chosen_rates(rows).set_index("method")
    is_best = [
        rate == chosen.loc[method, "learning rate"] and (means.method == method).sum() > 1
        for method, rate in means[RATES].itertuples(index=False, name=None)
    ]
    first = pd.DataFrame(
        {"method": name, "perplexity": math.exp(nats), "nll": nats, "chosen": ""}
        for name, nats in untrained.items()
    )
    frame = means.assign(chosen=["chosen" if best else "" for best in is_best])
    frame = pd.concat([first, frame], ignore_index=True)
    return Table(
        frame,
        [
            Column("method"),
            Number("learning rate"),
            NumberOrDiverged("perplexity", ".3f"),
            Column("chosen"),
        ],
    )


def steps_table(by_steps: pd.DataFrame, start: float) -> Table:
    """Validation perplexity of full attention by steps; first the best of no training, `start` nats a token.

    `by_steps`: columns steps, learning rate, nll.
    """
    untrained = pd.DataFrame([{"steps": 0, "learning rate": math.nan, "nll": start}])
    frame = pd.concat([untrained, by_steps], ignore_index=True)
    frame = frame.assign(perplexity=frame.nll.map(math.exp))
    return Table(frame, [Column("steps"), Number("learning rate"), NumberOrDiverged("perplexity", ".3f")])


def with_paper(measured: Table, published: pd.DataFrame, target: int) -> Table:
    """A table with the published rows under it, each value in the column of the same share of its target.

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
    frame = pd.concat([measured.frame.astype({"seeds": "Int64"}), under.astype({"seeds": "Int64"})])
    return Table(frame.reset_index(drop=True), measured.columns)
