"""Figures of context extension: gap to full attention, perplexity by context (Fig. 1, Tables 1 and 2)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sinklora.reproduction.extension.comparison import comparisons
from sinklora.reproduction.report.style import MARKS, PAGE_WIDTH, figure_style


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
                by_context = (
                    rows[(rows.test_set == test_set) & (rows.method == method)].groupby("context").perplexity
                )
                mean = by_context.mean()
                axis.plot(
                    mean.index, mean, color=grey, linestyle=line, marker=mark, markersize=3.5, label=method
                )
                axis.fill_between(
                    mean.index, by_context.min(), by_context.max(), color=grey, alpha=0.15, linewidth=0
                )
            axis.set_xlabel("context at test time (tokens)")
            axis.set_title(f"{test_set} (n = {rows.seed.nunique()} seeds)")
        axes[0][0].set_ylabel("perplexity")
        axes[0][-1].legend(frameon=False)
    return figure
