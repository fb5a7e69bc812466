"""Figures of the ablations: sweeps, and quality against cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sinklora.evaluate.ablations import perplexities
from sinklora.plots import MARKS
from sinklora.report import PAGE_WIDTH, figure_style


def sweep_figure(rows: pd.DataFrame, context: int, sweeps: Mapping[str, Mapping[float, str]]) -> Figure:
    """Gap to full attention by a field's value, one panel a field: dots are seeds, the line is their mean.

    `sweeps`: field -> value -> the method that has it.
    """
    found = perplexities(rows, context)
    with figure_style():
        figure, axes = plt.subplots(1, len(sweeps), figsize=(PAGE_WIDTH, 2.3), sharey=True, squeeze=False)
        for axis, (field, methods) in zip(axes[0], sweeps.items(), strict=True):
            gaps = pd.DataFrame({value: found[method] - found.full for value, method in methods.items()})
            places = range(len(gaps.columns))
            axis.plot(places, gaps.mean(), "k-", linewidth=0.9)
            for place, value in zip(places, gaps.columns, strict=True):
                axis.plot([place] * len(gaps), gaps[value], "ko", markersize=2.5)
            axis.set_xticks(list(places), [f"{value:g}" for value in gaps.columns])
            axis.set_xlabel(field)
            axis.axhline(0, color="0.6", linewidth=0.6)
        axes[0][0].set_ylabel(f"perplexity at {context} tokens\nminus full attention's")
        figure.suptitle(f"n = {len(found)} seeds", fontsize=8)
    return figure


def front_figure(front: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Gap to full attention against attention cost; the line joins what nothing beats at its cost.

    `front` from `costs_and_gaps`; `names`: the methods that get a name beside their mark.
    """
    with figure_style():
        figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 3.2))
        best = front[front.best_at_its_cost]
        axis.plot(best["attention cost"], best["gap to full"], color="0.6", zorder=1)
        for place, line in enumerate(front.itertuples(index=False)):
            method, cost, gap, low, high = line[:5]
            grey, _, mark = MARKS.get(method, ("0.5", "-", "."))
            error = None if pd.isna(low) else [[gap - low], [high - gap]]
            style: dict[str, Any] = {"color": grey, "marker": mark, "markersize": 4, "elinewidth": 0.5}
            axis.errorbar(cost, gap, yerr=error, zorder=2, **style)
            if method in names:
                above = 4 if place % 2 else -9
                axis.annotate(
                    method, (cost, gap), xytext=(4, above), textcoords="offset points", fontsize=6.5
                )
        axis.set_xscale("log")
        ticks = [
            tick for tick in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0) if tick >= front["attention cost"].min() / 2
        ]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("attention cost (pairs seen in training, as a share of full attention's)")
        axis.set_ylabel("perplexity minus full attention's")
        axis.set_title(
            f"bars: 95 % t-intervals over {front.seeds.max()} seeds; line: nothing is better at its cost"
        )
    return figure
