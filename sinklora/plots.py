"""Figures of results: lines and marks that stay apart in print without colour."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinklora.evaluate.extension import UNTRAINED, comparisons
from sinklora.evaluate.retrieval_study import BASE, accuracies
from sinklora.report import COLUMN_WIDTH, PAGE_WIDTH, figure_style

MARKS = {
    UNTRAINED: ("0.6", ":", "x"),
    BASE: ("0.6", "-", "*"),
    "full": ("black", "-", "o"),
    "short": ("0.45", "--", "s"),
    "s2": ("0.45", "-.", "^"),
    "s2_wrapped": ("0.45", ":", "v"),
    "sf": ("black", "--", "D"),
    "sf_shifted": ("black", "-.", "P"),
    "sf_then_full": ("black", ":", "X"),
}


def gap_figure(rows: pd.DataFrame, methods: Sequence[str], original: int, target: int) -> Figure:
    """Gap to full attention at the target length, each seed a dot, the mean a bar, one panel per test set."""
    compared = comparisons(rows, original, target)
    names = [name for name in methods if name != "full"]
    sets = sorted(compared.test_set.unique())
    with figure_style():
        figure, axes = plt.subplots(1, len(sets), figsize=(PAGE_WIDTH, 2.2), sharey=True, squeeze=False)
        for axis, test_set in zip(axes[0], sets, strict=True):
            for place, name in enumerate(names):
                gaps = compared[(compared.test_set == test_set) & (compared.method == name)].gap_to_full
                axis.bar(place, gaps.mean(), color="0.85", edgecolor="black", linewidth=0.6)
                axis.plot([place] * len(gaps), gaps, "ko", markersize=2.5)
            axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axis.axhline(0, color="black", linewidth=0.6)
            axis.set_title(f"{test_set} (n = {compared.seed.nunique()} seeds)")
        axes[0][0].set_ylabel(f"perplexity at {target} tokens\nminus full attention's")
    return figure


def context_figure(rows: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Perplexity against context length, mean over seeds with the range of the seeds, one panel per test
    set.
    """
    sets = sorted(rows.test_set.unique())
    with figure_style():
        figure, axes = plt.subplots(1, len(sets), figsize=(PAGE_WIDTH, 2.6), squeeze=False)
        for axis, test_set in zip(axes[0], sets, strict=True):
            for method in methods:
                grey, line, mark = MARKS.get(method, ("0.5", "-", "."))
                mine = (
                    rows[(rows.test_set == test_set) & (rows.method == method)].groupby("context").perplexity
                )
                mean = mine.mean()
                axis.plot(
                    mean.index, mean, color=grey, linestyle=line, marker=mark, markersize=3.5, label=method
                )
                axis.fill_between(mean.index, mine.min(), mine.max(), color=grey, alpha=0.15, linewidth=0)
            axis.set_xlabel("context at test time (tokens)")
            axis.set_title(f"{test_set} (n = {rows.seed.nunique()} seeds)")
        axes[0][0].set_ylabel("perplexity")
        axes[0][-1].legend(frameon=False)
    return figure


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


def _lengths(axis: Axes, found: pd.DataFrame, models: Sequence[str], context: int) -> None:
    lengths = sorted(found.tokens.unique())
    for place, model in enumerate(models):
        grey, line, mark = MARKS.get(model, ("0.6", "-", "x"))
        mine = found[found.model == model].sort_values("tokens")
        places = [lengths.index(tokens) + 0.06 * (place - len(models) / 2) for tokens in mine.tokens]
        error = [(mine.accuracy - mine.low).clip(lower=0), (mine.high - mine.accuracy).clip(lower=0)]
        style: dict[str, Any] = {"color": grey, "linestyle": line, "marker": mark, "markersize": 3.5}
        axis.errorbar(places, mine.accuracy, yerr=error, elinewidth=0.6, label=model, **style)
    axis.axvline(lengths.index(context) if context in lengths else -1, color="black", linestyle=":")
    axis.set_xticks(range(len(lengths)), [str(tokens) for tokens in lengths], rotation=45)


def depth_figure(rows: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Share of exact answers by length and depth, one panel a model: white none, black all."""
    with figure_style():
        figure, axes = plt.subplots(1, len(models), figsize=(PAGE_WIDTH, 2.3), sharey=True, squeeze=False)
        for axis, model in zip(axes[0], models, strict=True):
            mine = rows[rows.model == model].assign(correct=rows.correct.astype(float))
            grid = mine.pivot_table(index="depth", columns="tokens", values="correct")
            image = axis.imshow(grid, cmap="Greys", vmin=0, vmax=1, aspect="auto", origin="upper")
            axis.set_xticks(range(len(grid.columns)), [str(c) for c in grid.columns], rotation=90)
            axis.set_yticks([0, len(grid.index) - 1], ["first", "last"])
            axis.set_title(model)
            axis.set_xlabel("tokens")
        axes[0][0].set_ylabel("depth of the key")
        figure.colorbar(image, ax=axes, label="exact answers (share)", shrink=0.9)
    return figure


def training_curve(curve: pd.DataFrame, title: str, smooth: int = 50) -> Figure:
    """Training loss (nats a token) against steps: each step in light grey, a running mean over ``smooth``
    steps in black.
    """
    with figure_style():
        figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 2.2))
        axis.plot(curve.step, curve.loss, color="0.8", linewidth=0.5, label="each step")
        mean = curve.loss.rolling(smooth, min_periods=1).mean()
        axis.plot(curve.step, mean, color="black", label=f"mean of {smooth} steps")
        axis.set(xlabel="step", ylabel="training loss (nats a token)", title=title)
        axis.legend(frameon=False)
    return figure
