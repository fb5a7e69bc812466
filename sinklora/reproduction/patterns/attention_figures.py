"""Pictures of where attention goes: maps by layer and head, sink mass by layer and head, heavy hitters."""

import textwrap
from collections.abc import Mapping
from typing import Any

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
from sinklora.reproduction.patterns.figures import draw_weights
from sinklora.reproduction.report.style import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    figure_style,
    framed,
    panels,
    square_panels,
)

STYLES = (("0.5", "--", "s"), ("black", "-", "o"), ("0.3", "-.", "^"))
"""Grey, line and mark of the models, in order."""

KEY_TICKS = (0.2, 1, 10, 100)  # per cent of the keys


def maps_grid_figure(maps: Mapping[tuple[int, int], Tensor]) -> Figure:
    """Attention weights by (layer, head), a row a layer and a column a head, in logarithmic grey."""
    layers, heads = sorted({layer for layer, _ in maps}), sorted({head for _, head in maps})
    with figure_style():
        figure, axes = square_panels(len(layers), len(heads), PAGE_WIDTH, beside=1.5, above=0.5)
        for row, layer in enumerate(layers):
            for column, head in enumerate(heads):
                axis = axes[row][column]
                image = draw_weights(axis, maps[layer, head])
                axis.set(xticks=[], yticks=[])
                if row == 0:
                    axis.set_title(f"head {head}")
            axes[row][0].set_ylabel(f"layer {layer}\nquery (token)")
        for axis in axes[-1]:
            axis.set_xlabel("key (token)")
        figure.colorbar(image, ax=figure.axes, label="attention weight", extend="min", aspect=50)
    return figure


def sink_mass_figure(rows: pd.DataFrame) -> Figure:
    """Share of attention on the first tokens by layer, with 95 % intervals over documents, a panel a model;
    dotted: what uniform attention would give.
    """
    lines = sinks_by_layer(rows).frame
    lines = lines[~lines.layer.isin((WHOLE, UNIFORM))]
    models = [(str(model), group) for model, group in lines.groupby("model", sort=False)]
    with figure_style():
        figure, axes = _panels_by_layers(models, 2.6)
        for axis, (model, group), (colour, line, mark) in zip(axes, models, STYLES, strict=False):
            bars = [group[FIRST] - group[part(FIRST, "low")], group[part(FIRST, "high")] - group[FIRST]]
            style: dict[str, Any] = {
                "color": colour,
                "linestyle": line,
                "marker": mark,
                "markersize": 2.5,
                "linewidth": 0.8,
            }
            axis.errorbar(group.layer.astype(int), group[FIRST], yerr=bars, elinewidth=0.8, **style)
            uniform = Uniform.of(rows[rows.model == model]).first
            axis.axhline(uniform, color="0.6", linestyle=":", label=UNIFORM)
            passages, documents = group.passages.max(), group.documents.max()
            axis.set_title(f"{_name(model, group)}\nn = {passages:.0f} in {documents:.0f}", fontsize=7)
        axes[0].set_ylim(-2, None)  # whole marks at zero
        axes[0].set_ylabel(f"attention on the first {SINKS} tokens (%)")
        axes[-1].legend(frameon=False, loc="upper left")
        figure.supxlabel("layer; n: passages in documents; bars: 95 % over documents", fontsize=7)
    return figure


def _panels_by_layers(models: list[tuple[str, pd.DataFrame]], height: float) -> tuple[Figure, list[Axes]]:
    """Panels that share the vertical axis, as wide as their models are deep."""
    depths = [max(6, group.layer.nunique()) for _, group in models]
    figure, axes = panels(
        len(models), height, width=COLUMN_WIDTH, sharey=True, gridspec_kw={"width_ratios": depths}
    )
    for axis, (_, group) in zip(axes, models, strict=True):
        layers = group.layer.nunique()
        axis.set_xlim(-0.7, layers - 0.3)
        axis.set_xticks(range(0, layers, 1 + layers // 8))
    return figure, axes


def _name(model: str, rows: pd.DataFrame) -> str:
    """A model's name in so many lines as its panel of `_panels_by_layers` needs."""
    return textwrap.fill(model, 10 if rows.layer.nunique() < 12 else 32)


def head_mass_figure(rows: pd.DataFrame) -> Figure:
    """What each head of each layer gives to the first tokens, mean over passages: one panel a model."""
    models = [(str(model), by_head(group), group) for model, group in rows.groupby("model", sort=False)]
    heads = [values.shape[1] for _, values, _ in models]
    with figure_style():
        height = 0.9 + 0.12 * sum(heads) / len(heads)
        figure, axes = panels(len(models), height, columns=1, height_ratios=heads)
        for axis, (model, values, group) in zip(axes, models, strict=True):
            mass = values.groupby(group.layer).mean().to_numpy().T
            image = axis.imshow(mass, cmap="Greys", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
            passages = len(group[["document", "start"]].drop_duplicates())
            axis.set_title(f"{model}, {passages} passages")
            axis.set_yticks(range(0, mass.shape[0], 2))
            axis.set_xticks(range(0, mass.shape[1], 1 + mass.shape[1] // 8))
            axis.set_ylabel("head")
            framed(axis)
        axes[-1].set_xlabel("layer")
        label = f"attention on the first {SINKS} tokens (%)"
        figure.colorbar(image, ax=axes, location="bottom", label=label, aspect=40)
    return figure


def heavy_hitter_curves(rows: pd.DataFrame) -> Figure:
    """What the most attended keys receive against how many they are: mean over passages and layers, and the
    range of the layers; dotted: under uniform causal attention. A row a model; right: without the first
    tokens.
    """
    models = list(rows.groupby("model", sort=False))
    with figure_style():
        figure, axes = panels(2 * len(models), 1.6, columns=2, width=COLUMN_WIDTH, sharex=True, sharey=True)
        for row, (model, group) in enumerate(models):
            for axis, kind in zip(axes[2 * row :], (ALL, ASIDE), strict=False):
                _draw_curve(axis, kind, group)
            axes[2 * row].set_ylabel(textwrap.fill(str(model), 16), fontsize=7)
        for axis, title in zip(axes, ("all keys", f"without the\nfirst {SINKS} tokens"), strict=False):
            axis.set_title(title)
        figure.supxlabel("most attended keys (% of all)", fontsize=8)
        figure.supylabel("attention received (%)", fontsize=8)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", frameon=False)
    return figure


def _draw_curve(axis: Axes, kind: str, rows: pd.DataFrame) -> None:
    columns = [curve_column(kind, share) for share in KEY_SHARES]
    layers = 100 * rows.groupby(["layer", "document"])[columns].mean().groupby("layer").mean()
    at = [100 * share for share in KEY_SHARES]
    axis.fill_between(at, layers.min(), layers.max(), color="0.85", linewidth=0, label="from layer to layer")
    axis.plot(at, layers.mean(), color="black", marker="o", markersize=2.5, label="mean over layers")
    curve = 100 * uniform_curve(kind, int(rows.tokens.iloc[0])).numpy()
    axis.plot(at, curve, color="black", linestyle=":", label="uniform causal attention")
    axis.set(xscale="log", ylim=(0, 103))
    axis.set_xticks(KEY_TICKS, [f"{tick:g}" for tick in KEY_TICKS])
    axis.minorticks_off()
