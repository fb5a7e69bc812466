"""Figures of retrieval: pass keys by length, and by length and depth (Fig. 5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinklora.records.tables import part
from sinklora.reproduction.report.style import MARKS, PAGE_WIDTH, figure_style
from sinklora.reproduction.retrieval.cache_tables import EXACT, NATS
from sinklora.reproduction.retrieval.tables import accuracies

CACHE_MARKS = {
    "full": ("0.6", "-", "*"),
    "H2O": ("black", "-", "o"),
    "StreamingLLM": ("0.45", ":", "^"),
    "Local": ("0.45", "--", "s"),
}


def retrieval_figure(panels: Mapping[str, pd.DataFrame], models: Sequence[str], context: int) -> Figure:
    """Share of exact answers against length, a panel for each cache, one line a model, bars: 95 % intervals;
    dotted: trained context.
    """
    with figure_style():
        figure, axes = plt.subplots(
            1, len(panels), figsize=(PAGE_WIDTH, 2.6), sharey=True, squeeze=False, layout="constrained"
        )
        for axis, (title, rows) in zip(axes[0], panels.items(), strict=True):
            _lengths(axis, accuracies(rows), models, context)
            axis.set_title(title)
        axes[0, 0].set_ylabel("exact pass keys (share)")
        axes[0, 0].set_ylim(-0.03, 1.03)
        figure.supxlabel(
            "length of the document (tokens); dotted: the context of the extensions",
            fontsize=plt.rcParams["axes.labelsize"],
        )
        axes[0, -1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _lengths(axis: Axes, shares: pd.DataFrame, models: Sequence[str], context: int) -> None:
    lengths = sorted(shares.tokens.unique())
    for place, model in enumerate(models):
        grey, line, mark = MARKS.get(model, ("0.6", "-", "x"))
        points = shares[shares.model == model].sort_values("tokens")
        places = [lengths.index(tokens) + 0.06 * (place - len(models) / 2) for tokens in points.tokens]
        error = [(points.accuracy - points.low).clip(lower=0), (points.high - points.accuracy).clip(lower=0)]
        style: dict[str, Any] = {"color": grey, "linestyle": line, "marker": mark, "markersize": 3.5}
        axis.errorbar(places, points.accuracy, yerr=error, elinewidth=0.6, label=model, **style)
    axis.axvline(lengths.index(context) if context in lengths else -1, color="black", linestyle=":")
    axis.set_xticks(range(len(lengths)), [str(tokens) for tokens in lengths], rotation=45)


def depth_figure(rows: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Share of exact answers by length and depth, one panel a model: white none, black all."""
    with figure_style():
        figure, axes = plt.subplots(1, len(models), figsize=(PAGE_WIDTH, 2.3), sharey=True, squeeze=False)
        for axis, model in zip(axes[0], models, strict=True):
            answers = rows[rows.model == model].assign(correct=rows.correct.astype(float))
            grid = answers.pivot_table(index="depth", columns="tokens", values="correct")
            image = axis.imshow(grid, cmap="Greys", vmin=0, vmax=1, aspect="auto", origin="upper")
            axis.set_xticks(range(len(grid.columns)), [str(c) for c in grid.columns], rotation=90)
            axis.set_yticks([0, len(grid.index) - 1], ["first", "last"])
            axis.set_title(model)
            axis.set_xlabel("tokens")
        axes[0][0].set_ylabel("depth of the key")
        figure.colorbar(image, ax=axes, label="exact answers (share)", shrink=0.9)
    return figure


def keys_by_cache_figure(table: pd.DataFrame, chance: float) -> Figure:
    """Exact pass keys, and nats of their digits, against length, one line a cache; bars: 95 % intervals;
    dotted: digits that are all equally likely (`chance`, nats).

    `table`: the frame of `keys_table`.
    """
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.6), layout="constrained")
        for axis, heading in zip(axes, (EXACT, NATS), strict=True):
            lengths = sorted(table.tokens.unique())
            names = list(dict.fromkeys(table.cache))
            for place, name in enumerate(names):
                points = table[table.cache == name].sort_values("tokens")
                value, low, high = (points[h] for h in (heading, part(heading, "low"), part(heading, "high")))
                places = [lengths.index(t) + 0.06 * (place - len(names) / 2) for t in points.tokens]
                error = [(value - low).clip(lower=0), (high - value).clip(lower=0)]
                grey, line, mark = CACHE_MARKS[name]
                style: dict[str, Any] = {"color": grey, "linestyle": line, "marker": mark, "markersize": 3.5}
                axis.errorbar(places, value, yerr=error, elinewidth=0.6, label=name, **style)
            axis.set_xticks(range(len(lengths)), [str(tokens) for tokens in lengths])
            axis.set_xlabel("length of the document (tokens)")
        axes[0].set_ylabel("exact pass keys (share)")
        axes[0].set_ylim(-0.03, 1.03)
        axes[1].set_ylabel("nats of the five digits")
        axes[1].axhline(chance, color="0.6", linestyle=":", linewidth=0.8)
        axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
