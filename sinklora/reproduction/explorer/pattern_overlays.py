"""Attention patterns laid over the attention of a model: what each would let a text's queries see of it."""

import dataclasses
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sinklora.attention.pattern import Pattern, triangle
from sinklora.attention.patterns import FULL, find_pattern
from sinklora.reproduction.explorer.own_text import OwnText
from sinklora.reproduction.names import LABELS
from sinklora.reproduction.patterns.attention_study import SINKS
from sinklora.reproduction.patterns.figures import draw_weights
from sinklora.reproduction.patterns.study import sink_mass, uniform_mass
from sinklora.reproduction.report.explorer import explore, figure_html
from sinklora.reproduction.report.style import PAGE_WIDTH, figure_style

WINDOWS = ("sf", "s2")  # drawn beside full attention


def seen_share(maps: Tensor, pattern: Pattern) -> Tensor:
    """Share of each head's attention that falls on keys which a pattern lets its queries see, mean over
    queries: [layers, H] of maps [layers, H, N, N].
    """
    visible = pattern.visible(maps.shape[1], maps.shape[-1], device=maps.device)
    return (maps * visible).sum(-1).mean(-1)


def seen_in_words(own: OwnText, names: Sequence[str] = ("sf", "s2", "short")) -> str:
    """How much of the attention on a text patterns with windows of N/4 would leave, in a sentence."""
    shares = {name: float(seen_share(own.maps, find_pattern(name)).mean()) for name in names}
    told = ", ".join(f"{LABELS.get(name, name)} {share:.0%}" for name, share in shares.items())
    return f"Of the attention of {own.title} on this text, these masks would leave (windows of N/4): {told}."


def sinks_in_words(own: OwnText) -> str:
    """How much of the attention on a text falls on its first tokens, in a sentence."""
    count = own.maps.shape[-1]
    after = count // 4  # earlier queries see little else
    share = float(sink_mass(own.maps, SINKS, after).mean())
    return (
        f"{share:.0%} of the attention of {own.title} falls on the first {SINKS} of these {count} tokens; "
        f"spread evenly it would be {uniform_mass(count, SINKS, after):.0%}."
    )


def patterns_over_attention(own: OwnText, layer: int, head: int, patterns: Mapping[str, Pattern]) -> Figure:
    """The attention of one head, in logarithmic grey, once for each pattern; hatched: what the pattern hides.

    Above each panel: the share of this head's attention that stays, and of its pairs of tokens.
    """
    weights = own.maps[layer, head]
    with figure_style():
        figure, axes = plt.subplots(1, len(patterns), figsize=(PAGE_WIDTH, 2.9), squeeze=False)
        for axis, (name, pattern) in zip(axes[0], patterns.items(), strict=True):
            visible = pattern.visible(own.heads, len(weights))[head]
            _draw(axis, weights, visible)
            stays = float((weights * visible).sum(-1).mean())
            pairs = int(visible.sum()) / triangle(len(weights))
            axis.set_title(f"{name}\n{stays:.0%} of the attention\n{pairs:.0%} of the pairs")
        axes[0][0].set_ylabel(f"layer {layer}, head {head}\nquery (token)")
    return figure


def _draw(axis: Axes, weights: Tensor, visible: Tensor) -> None:
    size = len(weights)
    draw_weights(axis, weights)
    hidden = (~visible).tril().numpy()
    if hidden.any():
        axis.contourf(hidden, levels=[0.5, 1.5], colors=["0.75"], alpha=0.6, hatches=["////"])
        axis.contour(hidden, levels=[0.5], colors=["black"], linewidths=0.6)
    axis.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), xticks=[], yticks=[], xlabel="key (token)")


def shown_patterns(group_size: int | float = 0.25) -> dict[str, Pattern]:
    """Full attention, SF-Attn and S²-Attn by their names in words, with windows of one size."""
    windows = {name: dataclasses.replace(find_pattern(name), group_size=group_size) for name in WINDOWS}
    return {LABELS["full"]: FULL, **{LABELS[name]: pattern for name, pattern in windows.items()}}


def attention_explorer(own: OwnText, layer: int = 0, head: int = 0) -> object:
    """Choose layer, head and window and see what each pattern hides (a widget; needs a running notebook)."""
    import ipywidgets

    def draw(layer: int, head: int, half_group: int) -> str:
        return figure_html(patterns_over_attention(own, layer, head, shown_patterns(2 * half_group)))

    count = own.maps.shape[-1]
    late = {"continuous_update": False}  # one picture when the slider rests, not one for each step
    return explore(
        draw,
        {
            "layer": ipywidgets.IntSlider(layer, 0, own.layers - 1, description="layer", **late),
            "head": ipywidgets.IntSlider(head, 0, own.heads - 1, description="head", **late),
            # Shifted heads need an even window.
            "half_group": ipywidgets.IntSlider(
                -(-count // 8), 1, -(-count // 2), description="window / 2", **late
            ),
        },
    )
