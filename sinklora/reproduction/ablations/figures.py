"""Figures of the ablations: sweeps, and quality against cost."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sinklora.records.tables import part
from sinklora.reproduction.ablations.quality_cost import COST
from sinklora.reproduction.extension.comparison import Losses
from sinklora.reproduction.extension.tables import ABOVE
from sinklora.reproduction.names import label
from sinklora.reproduction.report.style import MARKS, figure_style, panels

AXES = {
    "sink_tokens": "sink tokens",
    "shifted": "share of heads shifted",
    "group_size": "window (share of the row)",
}


def sweep_figure(found: Losses, sweeps: Mapping[str, Mapping[float, str]]) -> Figure:
    """Nats above full attention by a field's value, one panel a field: mean, 95 % interval, seeds as dots.

    `sweeps`: field -> value -> the method that has it.
    """
    with figure_style():
        figure, axes = panels(len(sweeps), 2.3, sharey=True)
        for axis, (field, methods) in zip(axes, sweeps.items(), strict=True):
            places = range(len(methods))
            leads = [found.lead("full", method) for method in methods.values()]
            middle = np.array([lead.estimate for lead in leads])
            ends = np.array([[lead.low, lead.high] for lead in leads]).T
            axis.errorbar(places, middle, yerr=np.abs(ends - middle), fmt="ks-", markersize=3, elinewidth=1)
            for place, method in zip(places, methods.values(), strict=True):
                seeds = (found.by_method[method] - found.by_method["full"]).mean(1)
                axis.plot([place + 0.15] * len(seeds), seeds, "o", color="0.6", markersize=2)
            axis.set_xticks(list(places), [f"{value:g}" for value in methods])
            axis.set_xlabel(AXES.get(field, field))
            axis.axhline(0, color="0.6", linewidth=0.6)
        axes[0].set_ylabel("nats a token above full attention")
        figure.suptitle(leads[0].units, fontsize=8)
    return figure


def front_figure(front: pd.DataFrame, names: Sequence[str], units: str) -> Figure:
    """Nats above full attention against attention cost; the line joins what nothing beats at its cost.

    `front` from `costs_and_gaps`; `names`: the methods that are named beside their marks; `units`: n.
    """
    with figure_style():
        figure, [axis] = panels(1, 3.2)
        best = front[front.best_at_its_cost]
        axis.plot(best[COST], best[ABOVE], color="0.6", zorder=1)
        for _, line in front.iterrows():
            grey, _, mark = MARKS.get(line.method, ("0.5", "-", "."))
            low, high = line[part(ABOVE, "low")], line[part(ABOVE, "high")]
            error = [[line[ABOVE] - low], [high - line[ABOVE]]]
            axis.errorbar(
                line[COST], line[ABOVE], yerr=error, color=grey, marker=mark, markersize=4, elinewidth=0.5
            )
            if line.method in names:
                place = (line[COST], line[ABOVE])
                axis.annotate(label(line.method), place, (3, 3), textcoords="offset points", fontsize=6)
        axis.set_xscale("log")
        ticks = [t for t in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0) if front[COST].min() / 1.5 <= t]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("attention cost (pairs seen, share of full's)")
        axis.set_ylabel("nats a token above full attention")
        axis.set_title(f"{units}; line: nothing is better at its cost", fontsize=7)
    return figure
