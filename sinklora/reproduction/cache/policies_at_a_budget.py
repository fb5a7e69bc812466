"""All policies at one budget, by name: who gives back most after each length of prompt."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinklora.records.tables import part
from sinklora.reproduction.cache.cell_estimates import smaller_is_better
from sinklora.reproduction.cache.study import PERPLEXITY
from sinklora.reproduction.names import CACHES
from sinklora.reproduction.report.style import figure_style, logarithmic_ticks, panels

FULL = "full"

# Of the first length of prompts, the second and the third: mark, its colour, and what it is filled with.
POINTS = (("o", "black", "black"), ("D", "0.5", "white"), ("s", "0.3", "0.8"))

APART = 0.2  # of a line, from one length of prompt to the next


def check_lengths(name: str, prompts: Sequence[int]) -> None:
    """Raise ValueError, naming the argument, for more lengths of prompts than there are marks."""
    if len(prompts) > len(POINTS):
        raise ValueError(
            f"{name}: has prompts of {', '.join(map(str, prompts))} tokens; there are marks for "
            f"{len(POINTS)} lengths"
        )


def rivals_figure(lines: pd.DataFrame, measures: Sequence[str], budget: float, best_by: str) -> Figure:
    """A panel a measure, a line a policy with a mark and its 95 % interval for each prompt (three at most).

    `lines`: those of `estimates_by_prompt`; the full cache stands first, the others by `best_by` after the
    first prompt, best first; dotted grey: chance. Raises ValueError as `check_lengths` does.
    """
    prompts = sorted(lines.prompt.unique())
    check_lengths("lines", prompts)
    at_budget = lines[(lines.budget == budget) | (lines.policy == FULL)]
    order = _order(at_budget[(at_budget.prompt == prompts[0]) & (at_budget.measure == best_by)])
    with figure_style():
        figure, axes = panels(len(measures), 0.16 * len(order) + 0.9, columns=len(measures))
        for place, (axis, measure) in enumerate(zip(axes, measures, strict=True)):
            of_measure = at_budget[at_budget.measure == measure]
            for number, prompt in enumerate(prompts):
                _points(axis, of_measure[of_measure.prompt == prompt], order, number)
            named = [CACHES.get(policy, policy) for policy in order] if place == 0 else [""] * len(order)
            axis.set_yticks(range(len(order)), named)
            axis.set_ylim(len(order) - 0.4, -0.6)
            _value_axis(axis, measure, of_measure)
        if len(prompts) > 1:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper center", ncols=len(prompts), frameon=False)
    return figure


def _order(lines: pd.DataFrame) -> list[str]:
    bounded = lines[lines.policy != FULL]
    best_first = bounded.sort_values(
        "value", ascending=smaller_is_better(lines.measure.iloc[0]), kind="stable"
    )
    return [FULL, *best_first.policy]


def _points(axis: Axes, lines: pd.DataFrame, order: Sequence[str], number: int) -> None:
    if lines.empty:
        return
    shown = lines.set_index("policy").reindex([name for name in order if name in set(lines.policy)])
    places = [order.index(name) + APART * number for name in shown.index]
    ends = [
        (shown.value - shown[part("value", "low")]).to_numpy(),
        (shown[part("value", "high")] - shown.value).to_numpy(),
    ]
    mark, colour, filled = POINTS[number]
    axis.errorbar(
        shown.value,
        places,
        xerr=ends,
        label=f"{lines.prompt.iloc[0]} tokens",
        fmt=mark,
        color=colour,
        markerfacecolor=filled,
        markersize=3,
        linewidth=0.8,
    )


def _span(counts: pd.Series) -> str:
    """The counts in words: one, or the least and the most of them."""
    least, most = counts.min(), counts.max()
    return f"{least}" if least == most else f"{least} to {most}"


def _value_axis(axis: Axes, measure: str, lines: pd.DataFrame) -> None:
    items, clusters = (_span(lines[name]) for name in ("items", "clusters"))
    axis.set_title(f"{measure}\n(n = {items} in {clusters} documents)")
    if measure == PERPLEXITY:
        axis.set_xscale("log")
        logarithmic_ticks(axis.xaxis)
        axis.set_xlabel("perplexity (log scale)")
        return
    axis.axvline(lines.chance.iloc[0], color="0.7", linestyle=":", linewidth=0.8)
    axis.set(xlim=(-0.03, 1.03), xlabel="right answers (share)")
