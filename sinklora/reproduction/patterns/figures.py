"""Pictures of attention patterns and maps (Figs. 2, 3, 4 and 7)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import find_pattern
from sinklora.reproduction.patterns.study import heavy_hitter_share, influence, segmentation_steps, sink_mass
from sinklora.reproduction.report.explorer import explore, figure_html
from sinklora.reproduction.report.style import COLUMN_WIDTH, PAGE_WIDTH, figure_style

WINDOW_GREYS = ("0.85", "0.6", "0.4", "0.95", "0.72", "0.5")

WINDOW_HATCHES = ("", "///", "", "\\\\\\", "...", "")


def mask_figure(patterns: Sequence[str | Pattern], num_tokens: int, num_heads: int = 2) -> Figure:
    """One column per pattern, one row for the first head and one for the last: black where query i sees
    key j.

    Under each column the pattern's density: its visible pairs as a share of full causal attention's.
    """
    shown = [find_pattern(pattern) for pattern in patterns]
    names = [pattern if isinstance(pattern, str) else "" for pattern in patterns]
    with figure_style():
        figure, axes = plt.subplots(
            2, len(shown), figsize=(PAGE_WIDTH, 2.2 + PAGE_WIDTH / len(shown)), squeeze=False
        )
        for column, (name, pattern) in enumerate(zip(names, shown, strict=True)):
            visible = pattern.visible(num_heads, num_tokens)
            for row, head in enumerate((0, num_heads - 1)):
                _draw_mask(axes[row][column], visible[head])
            axes[0][column].set_title(name)
            density = pattern.density(num_heads, num_tokens)
            axes[1][column].set_xlabel(f"key (token)\ndensity {density:.2f}")
        axes[0][0].set_ylabel("first head\nquery (token)")
        axes[1][0].set_ylabel("last head\nquery (token)")
    return figure


def _draw_mask(axis: Axes, visible: Tensor) -> None:
    future = visible & torch.ones_like(visible).triu(1)
    axis.imshow(visible.float(), cmap="Greys", vmin=0, vmax=1.4, interpolation="nearest")
    for query, key in future.nonzero().tolist():
        axis.add_patch(Rectangle((key - 0.5, query - 0.5), 1, 1, fill=False, hatch="xxxx", linewidth=0))
    axis.plot([-0.5, len(visible) - 0.5], [-0.5, len(visible) - 0.5], color="black", linewidth=0.5)
    axis.set_xticks([])
    axis.set_yticks([])


def segmentation_figure(num_tokens: int, group_size: int) -> Figure:
    """The steps of `segmentation_steps`, one below the other; shade and hatch tell the windows, numbers
    the tokens.
    """
    steps = segmentation_steps(num_tokens, group_size)
    with figure_style():
        figure, axes = plt.subplots(len(steps), 1, figsize=(PAGE_WIDTH, 1.0 * len(steps)))
        for number, (axis, (title, tokens, windows)) in enumerate(zip(axes, steps, strict=True)):
            for row in range(2):
                for place, (token, window) in enumerate(zip(tokens[row], windows[row], strict=True)):
                    style = window % len(WINDOW_GREYS)
                    cell = Rectangle(
                        (place, 1 - row),
                        1,
                        0.85,
                        facecolor=WINDOW_GREYS[style],
                        hatch=WINDOW_HATCHES[style],
                        linewidth=0.3,
                    )
                    cell.set_edgecolor("white" if WINDOW_HATCHES[style] else "black")
                    axis.add_patch(cell)
                    dark = float(WINDOW_GREYS[style]) < 0.5
                    axis.text(
                        place + 0.5,
                        1.42 - row,
                        str(token),
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if dark else "black",
                    )
            axis.set(xlim=(0, num_tokens), ylim=(0, 1.9), title=f"{number + 1}. {title}")
            axis.set_yticks([1.42, 0.42], ["un-shifted heads", "shifted heads"])
            axis.set_xticks([])
            for side in ("left", "bottom"):
                axis.spines[side].set_visible(False)
    return figure


def leak_figure(patterns: Sequence[str], num_tokens: int, num_heads: int = 2) -> Figure:
    """Gradient of output i with respect to input j in the last head; what lies above the diagonal is the
    future.
    """
    with figure_style():
        figure, axes = plt.subplots(1, len(patterns), figsize=(PAGE_WIDTH, 2.9), squeeze=False)
        for axis, name in zip(axes[0], patterns, strict=True):
            moved = influence(find_pattern(name), num_tokens, num_heads)[-1]
            axis.imshow(moved, cmap="Greys", norm="linear", interpolation="nearest")
            axis.plot([-0.5, num_tokens - 0.5], [-0.5, num_tokens - 0.5], color="black", linewidth=0.7)
            for i, j in (moved.triu(1) != 0).nonzero().tolist():
                axis.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="xxxx", linewidth=0))
            axis.set(title=name, xlabel="input j (token)")
        axes[0][0].set_ylabel("output i (token)")
    return figure


def maps_figure(maps: Tensor) -> Figure:
    """Attention of the head with the strongest sink in each layer, logarithmic grey."""
    with figure_style():
        figure, axes = plt.subplots(1, len(maps), figsize=(PAGE_WIDTH, 2.2), squeeze=False)
        for layer, axis in enumerate(axes[0]):
            head = int(sink_mass(maps, 4)[layer].argmax())
            axis.imshow(
                np.log10(maps[layer, head].numpy() + 1e-4), cmap="Greys", vmin=-4, vmax=0, aspect="equal"
            )
            axis.set(title=f"layer {layer}, head {head}", xlabel="key (token)")
        axes[0][0].set_ylabel("query (token)")
    return figure


def heavy_hitter_figure(maps: Tensor) -> Figure:
    """Cumulative share of attention against the share of keys, most attended first, one line per layer."""
    share = heavy_hitter_share(maps)
    keys = np.arange(1, share.shape[1] + 1) / share.shape[1]
    with figure_style():
        figure, axis = plt.subplots(figsize=(COLUMN_WIDTH, 2.4))
        for layer, line in enumerate(share):
            axis.plot(
                100 * keys,
                100 * line,
                linestyle=("-", "--", "-.", ":")[layer % 4],
                color="black",
                label=f"layer {layer}",
            )
        axis.set(xscale="log", xlabel="most attended keys (% of all)", ylabel="attention received (%)")
        axis.legend(frameon=False)
    return figure


def pattern_explorer() -> object:
    """Sliders for tokens, group size, sinks and the shifted fraction of heads that redraw the mask (needs a
    running notebook).
    """
    import ipywidgets

    def draw(tokens: int, group: int, sinks: int, shifted_fraction: float) -> str:
        pattern = AttentionPattern(2 * group, sink_tokens=sinks, shifted_fraction=shifted_fraction)
        return figure_html(mask_figure([pattern], tokens, num_heads=4))

    return explore(
        draw,
        {
            "tokens": ipywidgets.IntSlider(32, 4, 96, description="N tokens"),
            "group": ipywidgets.IntSlider(4, 1, 24, description="G / 2"),
            "sinks": ipywidgets.IntSlider(4, 0, 16, description="sinks s"),
            "shifted_fraction": ipywidgets.FloatSlider(0.0, min=0, max=1, step=0.25, description="shifted"),
        },
    )
