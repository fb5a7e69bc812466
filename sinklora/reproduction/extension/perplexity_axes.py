"""Axes of perplexity: logarithmic, as many nats in every panel, lines named where they end."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, ScalarFormatter

from sinklora.reproduction.names import label


def cover_as_many_nats(axes: Sequence[Axes]) -> None:
    """Logarithmic scales that differ in where they begin and not in how far they reach."""
    ends = [np.log(axis.get_ylim()) for axis in axes]
    span = max(high - low for low, high in ends)
    for axis, (low, high) in zip(axes, ends, strict=True):
        middle = (low + high) / 2
        axis.set_ylim(math.exp(middle - span / 2), math.exp(middle + span / 2))


def on_log_scales(axis: Axes, contexts: Sequence[int]) -> None:
    """Contexts by powers of two, perplexities by any ratio."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(contexts), [str(context) for context in contexts])
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    axis.yaxis.set_minor_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="y", which="both", labelsize=7)


def name_ends(axis: Axes, ends: Mapping[str, tuple[int, float]], last: int) -> None:
    """The methods' names at the right, in the order of their ends and apart from each other."""
    low, high = np.log(axis.get_ylim())
    gap = (high - low) / 16
    height = -np.inf
    in_order = sorted(ends.items(), key=lambda item: item[1][1])
    for place_in_order, (name, (place, value)) in enumerate(in_order):
        height = max(float(np.log(value)), height + gap)
        axis.annotate(
            label(name),
            (place, value),
            xytext=(last * 1.08, float(np.exp(height))),
            va="center",
            fontsize=6.5,
            annotation_clip=False,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.4, "shrinkA": 0, "shrinkB": 2},
            zorder=3 + len(ends) - place_in_order,
        )
