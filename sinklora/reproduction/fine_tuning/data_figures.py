"""The figure of the data of fine-tuning: what sets are made of, and how long their examples are (Fig. 8)."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from sinklora.reproduction.fine_tuning.data_study import PLUS, SHARE, TEST, TRAIN
from sinklora.reproduction.report.published import published_value
from sinklora.reproduction.report.style import figure_style, panels
from sinklora.train.instructions.examples import KINDS, TITLES

PAPER = "paper"

GREYS = {PAPER: "0.85", PLUS: "0.65", TRAIN: "0.4", TEST: "0.1"}

MARKS = {PLUS: "s", TRAIN: "o", TEST: "^"}

THICK = 0.8  # of the place of a kind: all its bars together


def data_figure(sets: Mapping[str, pd.DataFrame]) -> Figure:
    """Left: the share of each kind of example in the paper's mix and in each set, with the number of examples
    at its bar. Right: tokens of instruction and answer, median and from the 5th to the 95th percentile.
    """
    with figure_style():
        figure, (shares, lengths) = panels(2, 2.6)
        _shares(shares, sets)
        _lengths(lengths, sets)
        figure.legend(*shares.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _shares(axis: Axes, sets: Mapping[str, pd.DataFrame]) -> None:
    names = [PAPER, *sets]
    height = THICK / len(names)
    for number, name in enumerate(names):
        places = [row + height * (number - (len(names) - 1) / 2) for row in range(len(KINDS))]
        if name == PAPER:
            values = [published_value("Figure 8", TITLES[source], SHARE) for source in KINDS]
            texts = [f"{value:g} %" for value in values]
        else:
            counts = [int((sets[name].kind == kind).sum()) for kind in KINDS.values()]
            values = [100 * count / len(sets[name]) for count in counts]
            texts = [f"{count:,}" for count in counts]
        bars = axis.barh(places, values, height, color=GREYS[name], label=name)
        axis.bar_label(bars, texts, padding=2, fontsize=6)
    axis.set_yticks(range(len(KINDS)), [f"{kind}\n({TITLES[source]})" for source, kind in KINDS.items()])
    axis.invert_yaxis()
    axis.set_xlabel("share of the examples (%)")
    axis.margins(x=0.12)


def _lengths(axis: Axes, sets: Mapping[str, pd.DataFrame]) -> None:
    height = THICK / len(sets)
    for row, kind in enumerate(KINDS.values()):
        for number, (name, examples) in enumerate(sets.items()):
            of_kind = examples[examples.kind == kind]
            for part, column in enumerate(("instruction_tokens", "output_tokens")):
                place = row + height * (number - (len(sets) - 1) / 2)
                low, middle, high = (float(of_kind[column].quantile(share)) for share in (0.05, 0.5, 0.95))
                axis.errorbar(
                    [middle],
                    [place],
                    xerr=[[middle - low], [high - middle]],
                    color=GREYS[name],
                    marker=MARKS[name],
                    markersize=3,
                    markerfacecolor=GREYS[name] if part == 0 else "white",
                    linewidth=0.9,
                    label=f"{name}, {kind}, {column}",
                )
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator())
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.set_yticks(range(len(KINDS)), list(KINDS.values()))
    axis.invert_yaxis()
    axis.set_xlabel("tokens; filled: instruction, open: answer")
