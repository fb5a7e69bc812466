"""The figure of training steps: time and memory against context length (Fig. 1)."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinklora.reproduction.efficiency.study import BASELINE, EAGER_STEP, PAPER_RATIOS, SF
from sinklora.reproduction.report.published import published_value
from sinklora.reproduction.report.style import figure_style, logarithmic_ticks, panels

METHODS = {
    "full fine-tuning": ("full fine-tuning", "0.6", "-", "s"),
    BASELINE: ("LoRA+, full attention", "black", "-", "o"),
    "LoRA+, S²-Attn": ("LoRA+, S²-Attn", "0.45", "-.", "^"),
    EAGER_STEP: ("LoRA+, full attention, all scores in memory", "0.45", "--", "x"),
}
"""Words, grey, line and mark of what SF-Attn is compared with."""

BESIDE = 0.11  # lengths, from mark to mark: two methods of one cost stay apart


def efficiency_figure(rows: pd.DataFrame, where: str) -> Figure:
    """Time and peak memory of a step, in multiples of SF-Attn's, by context; a grey line: the paper's.

    Under each length SF-Attn's own seconds and GiB. Dotted: by how much full attention needs more FLOPs.
    `where`: the machine and the number of steps, for the title.
    """
    with figure_style():
        figure, (time, memory) = panels(2, 2.2, columns=1)
        _multiples(time, rows, "seconds", "{:.2g} s")
        _multiples(memory, rows, "peak_gib", "{:.2g} GiB")
        needed = rows.pivot(index="tokens", columns="method", values="needed_tflop")
        by_flops = needed[BASELINE] / needed[SF]
        time.plot(
            range(len(by_flops)), by_flops, "k:", linewidth=0.7, label="LoRA+, full attention, by its FLOPs"
        )
        time.set_title(where)
        time.set_ylabel("time / SF-Attn's")
        memory.set_ylabel("peak memory / SF-Attn's")
        memory.set_xlabel("context (tokens); below, SF-Attn's own")
        figure.legend(*time.get_legend_handles_labels(), loc="outside upper center", frameon=False)
    return figure


def _multiples(axis: Axes, rows: pd.DataFrame, column: str, unit: str) -> None:
    """Every method's cost over SF-Attn's, the methods side by side at each length."""
    wide = rows.pivot(index="tokens", columns="method", values=column).sort_index()
    measured = [name for name in METHODS if name in wide]
    for number, name in enumerate(measured):
        words, grey, line, mark = METHODS[name]
        places = [place + BESIDE * (number - (len(measured) - 1) / 2) for place in range(len(wide))]
        style: dict[str, Any] = {
            "color": grey,
            "linestyle": line,
            "marker": mark,
            "markersize": 3.5,
            "linewidth": 0.8,
        }
        axis.plot(places, wide[name] / wide[SF], label=words, **style)
    paper = published_value("Figure 1", PAPER_RATIOS[column])
    for value, text, line in ((paper, f"paper: {paper:g}", "-"), (1.0, "SF-Attn", "--")):
        axis.axhline(value, color="0.6", linestyle=line, linewidth=0.8, zorder=0)
        axis.annotate(text, (1.01, value), xycoords=("axes fraction", "data"), va="center", fontsize=7)
    axis.set_yscale("log")
    logarithmic_ticks(axis.yaxis)
    axis.set_xticks(range(len(wide)), _lengths(wide.index.tolist(), wide[SF].tolist(), unit))


def _lengths(tokens: Sequence[int], own: Sequence[float], unit: str) -> list[str]:
    return [f"{length}\n{unit.format(value)}" for length, value in zip(tokens, own, strict=True)]
