"""What is said of sinks and heavy hitters: by layer, with intervals over documents, beside uniform attention.

All tables are in per cent of attention. A document's passages count together, as their mean: those of one
book are more alike than those of two.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinklora.evaluate.clustered_means import MeanInterval, mean_interval
from sinklora.evaluate.statistics import bonferroni
from sinklora.records.tables import Column, Estimate, Number, Table, part
from sinklora.reproduction.patterns.attention_study import (
    AFTER,
    ALL,
    ASIDE,
    KEY_SHARES,
    SINKS,
    curve_column,
    sink_column,
    uniform_curve,
)
from sinklora.reproduction.patterns.study import uniform_mass

WHOLE = "all"  # layers

UNIFORM = "uniform attention"

STRONGEST = f"first {SINKS}, strongest head (%)"

TENTH = 0.1

FIRST = f"first {SINKS} (%)"

TOP = "top tenth of keys (%)"

TOP_ASIDE = f"top tenth but the first {SINKS} (%)"


@dataclass(frozen=True)
class Uniform:
    """What attention spread evenly over all visible keys would give, in per cent."""

    first: float
    tenth: float
    tenth_aside: float

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "Uniform":
        """For passages of the rows' length."""
        tokens = int(rows.tokens.iloc[0])
        tenth = KEY_SHARES.index(TENTH)
        curves = (float(uniform_curve(kind, tokens)[tenth]) for kind in (ALL, ASIDE))
        return cls(100 * uniform_mass(tokens, SINKS, AFTER), *(100 * share for share in curves))

    def by_measure(self) -> dict[str, float]:
        """By the names of `measures`."""
        return {FIRST: self.first, TOP: self.tenth, TOP_ASIDE: self.tenth_aside}


def by_head(rows: pd.DataFrame) -> pd.DataFrame:
    """What each head gives to the first tokens: one column a head, in per cent, of one model's rows."""
    prefix = sink_column(0).removesuffix("0")
    heads = rows[[name for name in rows.columns if name.startswith(prefix)]].dropna(axis=1)
    return 100 * heads.rename(columns=lambda name: int(name.removeprefix(prefix)))


def measures(rows: pd.DataFrame) -> pd.DataFrame:
    """The three numbers of each row (one model's) that tables show, in per cent."""
    return pd.DataFrame(
        {
            FIRST: by_head(rows).mean(axis=1),
            TOP: 100 * rows[curve_column(ALL, TENTH)],
            TOP_ASIDE: 100 * rows[curve_column(ASIDE, TENTH)],
        }
    )


def estimate(rows: pd.DataFrame, values: "pd.Series[float]", level: float = 0.95) -> MeanInterval:
    """Mean over documents, and the ends of its t-interval."""
    means = values.groupby(rows.document).mean()
    return mean_interval(means.dropna().tolist(), level=level)


def sinks_by_layer(rows: pd.DataFrame) -> Table:
    """One line per model and layer, one for all its layers, with 95 % t-intervals over documents, and one for
    uniform attention.
    """
    lines: list[dict[str, Any]] = []
    for model, of_model in rows.groupby("model", sort=False):
        values, heads, uniform = measures(of_model), by_head(of_model), Uniform.of(of_model)
        for layer, group in [*of_model.groupby("layer"), (WHOLE, of_model)]:
            line: dict[str, Any] = {"model": model, "layer": str(layer)}
            for name in (FIRST, TOP, TOP_ASIDE):
                mean, low, high = estimate(group, values.loc[group.index, name])
                line |= {name: mean, part(name, "low"): low, part(name, "high"): high}
            strongest = heads.loc[group.index].groupby(group.layer).mean().to_numpy().max()
            line |= {STRONGEST: float(strongest), "documents": group.document.nunique()}
            lines.append(line | {"passages": len(group[["document", "start"]].drop_duplicates())})
        lines.append({"model": model, "layer": UNIFORM, **uniform.by_measure(), STRONGEST: uniform.first})
    estimates = [Estimate(name) for name in (FIRST, TOP, TOP_ASIDE)]
    counts = [Number("documents", ".0f"), Number("passages", ".0f")]
    columns = [Column("model"), Column("layer"), *estimates, Number(STRONGEST, ".2f"), *counts]
    return Table(pd.DataFrame(lines), columns)


def attention_by_passage(rows: pd.DataFrame) -> Table:
    """Every passage's numbers, from which all else is computed: a line a measure, a column a layer.

    A reader sees their mean over layers; the csv has the layers.
    """
    frames = []
    for model, of_model in rows.groupby("model", sort=False):
        long = pd.concat([of_model[["document", "start", "layer"]], measures(of_model)], axis=1)
        long = long.melt(["document", "start", "layer"], var_name="measure")
        wide = long.pivot(index=["measure", "document", "start"], columns="layer", values="value")
        wide.columns = [f"layer {layer}" for layer in wide.columns]
        wide.insert(0, "mean over layers", wide.mean(axis=1))
        wide = wide.reset_index()
        wide.insert(0, "model", model)
        frames.append(wide)
    shown = ("model", "measure", "document", "start", "mean over layers")
    return Table(pd.concat(frames, ignore_index=True), [Column(name) for name in shown])


def attention_verdict(rows: pd.DataFrame) -> str:
    """Which model has sinks, and whether heavy hitters are more than uniform attention's, in numbers.

    A layer counts where all of its interval, widened for the number of layers (Bonferroni), is above uniform.
    """
    return " ".join(_verdict_on(str(model), group) for model, group in rows.groupby("model", sort=False))


def _verdict_on(model: str, rows: pd.DataFrame) -> str:
    values, uniform, layers = measures(rows), Uniform.of(rows), rows.groupby("layer")
    level = bonferroni(len(layers))
    mean, low, high = estimate(rows, values[FIRST])
    above = sum(
        estimate(group, values.loc[group.index, FIRST], level).low > uniform.first for _, group in layers
    )
    tenth, aside = (estimate(rows, values[name]).mean for name in (TOP, TOP_ASIDE))
    return (
        f"{model}: the first {SINKS} tokens draw {mean:.1f} % of attention ({low:.1f} to {high:.1f}; uniform "
        f"attention would give {uniform.first:.1f}), more than uniform in {above} of {len(layers)} layers; "
        f"the most attended tenth of keys receives {tenth:.0f} % (uniform {uniform.tenth:.0f}), without the "
        f"first {SINKS} tokens {aside:.0f} % of what is left (uniform {uniform.tenth_aside:.0f})."
    )
