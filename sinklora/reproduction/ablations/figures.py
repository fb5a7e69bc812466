"""Figures of the ablations: sweeps, and quality against cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinklora.reproduction.ablations.by_seed import perplexities
from sinklora.reproduction.report.style import MARKS, PAGE_WIDTH, figure_style


def sweep_figure(rows: pd.DataFrame, context: int, sweeps: Mapping[str, Mapping[float, str]]) -> Figure:
    """Gap to full attention by a field's value, one panel a field: dots are seeds, the line is their mean.

    `sweeps`: field -> value -> the method that has it.
    """
    by_seed = perplexities(rows, context)
    with figure_style():
        figure, axes = plt.subplots(1, len(sweeps), figsize=(PAGE_WIDTH, 2.3), sharey=True, squeeze=False)
        for axis, (field, methods) in zip(axes[0], sweeps.items(), strict=True):
            gaps = pd.DataFrame({value: by_seed[method] - by_seed.full for value, method in methods.items()})
            places = range(len(gaps.columns))
            axis.plot(places, gaps.mean(), "k-", linewidth=0.9)
            for place, value in zip(places, gaps.columns, strict=True):
                axis.plot([place] * len(gaps), gaps[value], "ko", markersize=2.5)
            axis.set_xticks(list(places), [f"{value:g}" for value in gaps.columns])
            axis.set_xlabel(field)
            axis.axhline(0, color="0.6", linewidth=0.6)
        axes[0][0].set_ylabel(f"perplexity at {context} tokens\nminus full attention's")
        figure.suptitle(f"n = {len(by_seed)} seeds", fontsize=8)
    return figure


def front_figure(front: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Gap to full attention against attention cost; the line joins what nothing beats at its cost.

    `front` from `costs_and_gaps`; `names`: the methods named at the right, in the order of their gaps.
    """
    with figure_style():
        figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 3.4))
        best = front[front.best_at_its_cost]
        axis.plot(best["attention cost"], best["gap to full"], color="0.6", zorder=1)
        for line in front.itertuples(index=False):
            method, cost, gap, low, high = line[:5]
            grey, _, mark = MARKS.get(method, ("0.5", "-", "."))
            error = None if pd.isna(low) else [[gap - low], [high - gap]]
            style: dict[str, Any] = {"color": grey, "marker": mark, "markersize": 4, "elinewidth": 0.5}
            axis.errorbar(cost, gap, yerr=error, zorder=3, **style)
        _name_at_the_right(axis, front[front.method.isin(names)].sort_values("gap to full"))
        axis.set_xscale("log")
        # Gaps differ by a factor of a hundred, and full attention's is 0.
        axis.set_yscale("symlog", linthresh=1.0)
        axis.set_ylim(bottom=min(0.0, front.low.fillna(front["gap to full"]).min()) - 0.2)
        for ticks, limit, set_ticks in (
            ((0.05, 0.1, 0.2, 0.3, 0.5, 1.0), front["attention cost"], axis.set_xticks),
            ((0, 0.5, 1, 2, 5, 10, 20, 50, 100), front["gap to full"], axis.set_yticks),
        ):
            shown = [tick for tick in ticks if limit.min() / 2 <= tick <= 2 * limit.max()]
            set_ticks(shown, [f"{tick:g}" for tick in shown])
        axis.minorticks_off()
        axis.set_xlabel("attention cost (pairs seen in training, as a share of full attention's)")
        axis.set_ylabel("perplexity minus full attention's")
        axis.set_title(
            f"bars: 95 % t-intervals over {front.seeds.max()} seeds; line: nothing is better at its cost"
        )
    return figure


def _name_at_the_right(axis: Axes, named: pd.DataFrame) -> None:
    """The methods' names in a column beside the axes, evenly spaced, each joined to its mark."""
    for place, line in enumerate(named.itertuples(index=False)):
        method, cost, gap = line[:3]
        axis.annotate(
            method,
            (cost, gap),
            xytext=(1.02, (place + 0.5) / len(named)),
            textcoords="axes fraction",
            va="center",
            fontsize=6.5,
            arrowprops={"arrowstyle": "-", "linewidth": 0.3, "color": "0.75", "zorder": 0},
        )
