"""Pictures of where attention goes: maps by layer and head, sink mass by layer and head, heavy hitters."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sinklora.records.tables import part
from sinklora.reproduction.patterns.attention_study import (
    ALL,
    ASIDE,
    KEY_SHARES,
    SINKS,
    curve_column,
    uniform_curve,
)
from sinklora.reproduction.patterns.attention_tables import (
    FIRST,
    UNIFORM,
    WHOLE,
    Uniform,
    by_head,
    sinks_by_layer,
)
from sinklora.reproduction.report.style import PAGE_WIDTH, figure_style

# Colour, line, mark and hatch of the models, in order.
STYLES = (("0.5", "--", "s", "////"), ("black", "-", "o", ""), ("0.3", "-.", "^", "...."))


def maps_grid_figure(maps: Mapping[tuple[int, int], Tensor]) -> Figure:
    """Attention weights by (layer, head), a row a layer and a column a head, in logarithmic grey."""
    layers, heads = sorted({layer for layer, _ in maps}), sorted({head for _, head in maps})
    with figure_style():
        size = (PAGE_WIDTH, 0.3 + PAGE_WIDTH / len(heads) * len(layers))
        figure, axes = plt.subplots(len(layers), len(heads), figsize=size, squeeze=False)
        for row, layer in enumerate(layers):
            for column, head in enumerate(heads):
                axis = axes[row][column]
                weights = np.log10(maps[layer, head].cpu().numpy() + 1e-4)
                axis.imshow(weights, cmap="Greys", vmin=-4, vmax=0, interpolation="antialiased")
                axis.set(xticks=[], yticks=[])
                if row == 0:
                    axis.set_title(f"head {head}")
            axes[row][0].set_ylabel(f"layer {layer}\nquery (token)")
        for axis in axes[-1]:
            axis.set_xlabel("key (token)")
    return figure


def sink_mass_figure(rows: pd.DataFrame) -> Figure:
    """Share of attention on the first tokens by layer, with 95 % intervals over documents, a line a model;
    dotted: what uniform attention would give.
    """
    lines = sinks_by_layer(rows).frame
    lines = lines[~lines.layer.isin((WHOLE, UNIFORM))]
    with figure_style():
        figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 2.4))
        for (model, group), (colour, line, mark, _) in zip(
            lines.groupby("model", sort=False), STYLES, strict=False
        ):
            bars = [group[FIRST] - group[part(FIRST, "low")], group[part(FIRST, "high")] - group[FIRST]]
            layer = group.layer.astype(int)
            axis.errorbar(
                layer,
                group[FIRST],
                yerr=bars,
                color=colour,
                linestyle=line,
                marker=mark,
                markersize=3,
                label=model,
            )
        for uniform in {Uniform.of(group).first for _, group in rows.groupby("tokens")}:
            axis.axhline(uniform, color="0.6", linestyle=":", label=UNIFORM)
        axis.set(xlabel="layer", ylabel=f"attention on the first {SINKS} tokens (%)", ylim=(0, None))
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def head_mass_figure(rows: pd.DataFrame) -> Figure:
    """What each head of each layer gives to the first tokens, mean over passages: one panel a model."""
    models = list(rows.groupby("model", sort=False))
    with figure_style():
        figure, axes = plt.subplots(1, len(models), figsize=(PAGE_WIDTH, 2.4), squeeze=False)
        for axis, (model, group) in zip(axes[0], models, strict=True):
            mass = by_head(group).groupby(group.layer).mean().to_numpy().T
            image = axis.imshow(mass, cmap="Greys", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
            axis.set(title=model, xlabel="layer", ylabel="head")
        figure.colorbar(image, ax=axes[0], label=f"attention on the first {SINKS} tokens (%)")
    return figure


def heavy_hitter_curves(rows: pd.DataFrame) -> Figure:
    """What the most attended keys receive against how many they are: mean over passages and layers, and the
    range of the layers; dotted: under uniform causal attention. Right: the same without the first tokens.
    """
    with figure_style():
        figure, axes = plt.subplots(1, 2, figsize=(PAGE_WIDTH, 2.6), sharey=True)
        for axis, kind in zip(axes, (ALL, ASIDE), strict=True):
            for (model, group), style in zip(rows.groupby("model", sort=False), STYLES, strict=False):
                _draw_curve(axis, kind, str(model), group, style)
            for tokens in sorted(rows.tokens.unique()):
                curve = 100 * uniform_curve(kind, int(tokens)).numpy()
                axis.plot(_percent(), curve, color="0.6", linestyle=":", label="uniform causal attention")
            title = "all keys" if kind == ALL else f"without the first {SINKS} tokens"
            axis.set(xscale="log", xlabel="most attended keys (% of all)", title=title, ylim=(0, 102))
        axes[0].set_ylabel("attention received (%)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _draw_curve(
    axis: Axes, kind: str, model: str, rows: pd.DataFrame, style: tuple[str, str, str, str]
) -> None:
    colour, line, mark, hatch = style
    columns = [curve_column(kind, share) for share in KEY_SHARES]
    layers = 100 * rows.groupby(["layer", "document"])[columns].mean().groupby("layer").mean()
    axis.fill_between(
        _percent(), layers.min(), layers.max(), color=colour, alpha=0.2, hatch=hatch, linewidth=0.5
    )
    axis.plot(_percent(), layers.mean(), color=colour, linestyle=line, marker=mark, markersize=3, label=model)


def _percent() -> list[float]:
    return [100 * share for share in KEY_SHARES]
