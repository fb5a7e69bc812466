"""The figure of training steps: time and memory against context length (Fig. 1)."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sinklora.reproduction.efficiency.study import BASELINE, EAGER_STEP, SF
from sinklora.reproduction.report.style import PAGE_WIDTH, figure_style

LINES = {
    "full fine-tuning": ("0.6", "-", "s"),
    BASELINE: ("black", "-", "o"),
    "LoRA+, S²-Attn": ("0.45", "-.", "^"),
    SF: ("black", "--", "D"),
    EAGER_STEP: ("0.6", ":", "x"),
}


def efficiency_figure(rows: pd.DataFrame, where: str) -> Figure:
    """Seconds and peak memory of a step by context, both axes logarithmic; thin: what the FLOPs would give.

    The thin lines are scaled to the time of LoRA+ with full attention. `where`: the machine, for the title.
    """
    lengths = sorted(rows.tokens.unique())
    with figure_style():
        figure, (time, memory) = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 3.0))
        base = rows[rows.method == BASELINE].set_index("tokens")
        for name, (grey, line, mark) in LINES.items():
            of_method = rows[rows.method == name].set_index("tokens")
            if of_method.empty:
                continue
            style = {"color": grey, "linestyle": line, "marker": mark, "markersize": 3.5}
            time.plot(of_method.index, of_method.seconds, label=name, **style)
            memory.plot(of_method.index, of_method.peak_gib, **style)
            ideal = of_method.needed_tflop / base.needed_tflop * base.seconds
            time.plot(of_method.index, ideal, color=grey, linestyle=line, linewidth=0.4)
        for axis, label in ((time, "seconds a step"), (memory, "peak memory (GiB)")):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(lengths, [str(length) for length in lengths], rotation=45)
            axis.set_xlabel("context (tokens)")
            axis.set_ylabel(label)
            for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                which(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.suptitle(f"{where}; thin: by FLOPs", fontsize=8)
    return figure
