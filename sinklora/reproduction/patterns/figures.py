"""Pictures of attention patterns and maps (Figs. 2, 3, 4 and 7)."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import find_pattern
from sinklora.reproduction.names import label
from sinklora.reproduction.patterns.attention_study import SINKS
from sinklora.reproduction.patterns.study import influence, segmentation_steps, sink_mass
from sinklora.reproduction.report.explorer import explore, figure_html
from sinklora.reproduction.report.style import (
    COLUMN_WIDTH,
    PAGE_WIDTH,
    figure_style,
    framed,
    panels,
    square_panels,
    wrapped,
)

SEEN = "0.4"  # grey of a key that is seen

LEAK = "x" * 8  # hatch of one in the future: dense, because cells are small

WINDOW_GREYS = ("0.85", "0.6", "0.4", "0.95", "0.72", "0.5")

FAINTEST = 1e-4  # the weight from which on a cell of a map is not white


def mask_figure(
    patterns: Sequence[str | Pattern], num_tokens: int, num_heads: int = 2, longer: Sequence[int] = ()
) -> Figure:
    """One column per pattern, one row for the first head and one for the last: dark where query i sees
    key j.

    Under each column the pattern's density, its visible pairs as a share of full causal attention's, in a
    row of `num_tokens`, and in `longer` ones: four sinks are much of a short row.
    """
    shown = [find_pattern(pattern) for pattern in patterns]
    names = [label(pattern) if isinstance(pattern, str) else "" for pattern in patterns]
    width = COLUMN_WIDTH if len(shown) <= 4 else PAGE_WIDTH
    titles = [wrapped(name, (width - 0.5) / len(shown)) for name in names]
    lines = 1 + max(title.count("\n") for title in titles)
    lengths = (num_tokens, *longer)
    with figure_style():
        figure, axes = square_panels(2, len(shown), width, beside=0.5, above=0.95 + 0.12 * lines)
        for column, (title, pattern) in enumerate(zip(titles, shown, strict=True)):
            visible = pattern.visible(num_heads, num_tokens)
            for row, head in enumerate((0, num_heads - 1)):
                _draw_mask(axes[row][column], visible[head])
            axes[0][column].set_title(title, fontsize=7)
            axes[1][column].set_xlabel(f"key (token)\n{_densities(pattern, lengths, num_heads)}", fontsize=7)
        axes[0][0].set_ylabel("first head\nquery (token)", fontsize=7)
        axes[1][0].set_ylabel("last head\nquery (token)", fontsize=7)
        at = " | ".join(str(n) for n in lengths)
        figure.suptitle(f"N = {num_tokens} tokens; below: density at N = {at}", fontsize=8)
        figure.legend(handles=_legend(figure.axes), loc="outside lower center", ncols=2, frameon=False)
    return figure


def _densities(pattern: Pattern, lengths: Sequence[int], num_heads: int) -> str:
    """The windows in a row of the first length, and below them the density at every length."""
    group = pattern.group_tokens(lengths[0])
    windows = f"G = {group}" if group < lengths[0] else "no windows"
    return f"{windows}\n{' | '.join(f'{pattern.density(num_heads, n):.2f}' for n in lengths)}"


def _legend(axes: Sequence[Axes]) -> list[Patch]:
    seen = Patch(facecolor=SEEN, label="key that is seen")
    future = Patch(facecolor=SEEN, hatch=LEAK, label="seen, but in the future (a leak)")
    return [seen, future] if any(axis.patches for axis in axes) else [seen]


def _draw_mask(axis: Axes, visible: Tensor) -> None:
    axis.imshow(
        visible.float().numpy(), cmap=ListedColormap(["white", SEEN]), vmin=0, vmax=1, interpolation="nearest"
    )
    _hatch(axis, visible.triu(1))
    axis.plot([-0.5, len(visible) - 0.5], [-0.5, len(visible) - 0.5], color="black", linewidth=0.5)
    axis.set(xticks=[], yticks=[])
    framed(axis)


def _hatch(axis: Axes, cells: Tensor) -> None:
    """Hatches the cells (row, column) that are not zero."""
    for row, column in cells.nonzero().tolist():
        axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch=LEAK, linewidth=0))


def segmentation_figure(num_tokens: int, group_size: int) -> Figure:
    """The steps of `segmentation_steps`, one below the other; shades tell the windows, numbers the tokens."""
    steps = segmentation_steps(num_tokens, group_size)
    with figure_style():
        figure, axes = panels(len(steps), 0.85, columns=1)
        for number, (axis, (title, tokens, windows)) in enumerate(zip(axes, steps, strict=True)):
            for row in range(2):
                for place, (token, window) in enumerate(zip(tokens[row], windows[row], strict=True)):
                    _draw_token(axis, (place, 1 - row), str(token), WINDOW_GREYS[window % len(WINDOW_GREYS)])
            axis.set_title(wrapped(f"{number + 1}. {title}", 2.6), loc="left", fontsize=7)
            axis.set(xlim=(-0.1, num_tokens + 0.1), ylim=(-0.1, 1.95), xticks=[])
            axis.set_yticks([1.42, 0.42], ["un-shifted\nheads", "shifted\nheads"])
            axis.tick_params(length=0)
            axis.spines[["left", "bottom"]].set_visible(False)
    return figure


def _draw_token(axis: Axes, corner: tuple[int, int], token: str, grey: str) -> None:
    axis.add_patch(Rectangle(corner, 1, 0.85, facecolor=grey, edgecolor="0.3", linewidth=0.4))
    colour = "white" if float(grey) < 0.5 else "black"
    place = (corner[0] + 0.5, corner[1] + 0.42)
    axis.text(*place, token, ha="center", va="center", fontsize=7, color=colour)


def leak_figure(patterns: Sequence[str], num_tokens: int) -> Figure:
    """Gradient of output i with respect to input j in the last head, all on one scale; hatched: what is not
    zero above the diagonal, in the future.
    """
    of_heads = [influence(find_pattern(name), num_tokens) for name in patterns]
    moved = [one[-1] for one in of_heads]
    most = float(max(one.max() for one in moved))
    with figure_style():
        figure, [axes] = square_panels(1, len(patterns), COLUMN_WIDTH, beside=0.4, above=1.35)
        for axis, name, one in zip(axes, patterns, moved, strict=True):
            image = axis.imshow(one.numpy(), cmap="Greys", vmin=0, vmax=most, interpolation="nearest")
            axis.plot([-0.5, num_tokens - 0.5], [-0.5, num_tokens - 0.5], color="black", linewidth=0.5)
            _hatch(axis, one.triu(1))
            axis.set_title(wrapped(label(name), (COLUMN_WIDTH - 0.4) / len(patterns)), fontsize=7)
            axis.set_xlabel("input j (token)")
            axis.set_xticks([0, num_tokens - 1])
            axis.set_yticks([0, num_tokens - 1] if axis is axes[0] else [])
            framed(axis)
        axes[0].set_ylabel("output i (token)")
        heads = len(of_heads[0])
        scale = f"norm of the gradient; hatched: j > i, the future\n({heads} heads, the last one shown)"
        figure.colorbar(image, ax=axes, location="bottom", label=scale, aspect=30)
    return figure


def draw_weights(axis: Axes, weights: Tensor) -> AxesImage:
    """One head's attention weights [N, N] in logarithmic grey, with room left of the first key's column."""
    norm = LogNorm(FAINTEST, 1)
    shown = weights.cpu().clamp(min=FAINTEST).numpy()
    image = axis.imshow(shown, cmap="Greys", norm=norm, interpolation="antialiased")
    axis.set_xlim(-0.04 * len(weights), len(weights) - 0.5)
    framed(axis)
    return image


def maps_figure(maps: Tensor) -> Figure:
    """Attention of the head with the strongest sink in each layer, logarithmic grey."""
    rows, columns = -(-len(maps) // 2), min(2, len(maps))
    with figure_style():
        figure, axes = square_panels(rows, columns, COLUMN_WIDTH, beside=1.5, above=0.75)
        for layer, axis in enumerate(axis for row in axes for axis in row):
            if layer >= len(maps):
                axis.remove()
                continue
            head = int(sink_mass(maps, SINKS)[layer].argmax())
            image = draw_weights(axis, maps[layer, head])
            axis.set_title(f"layer {layer}, head {head}")
            ticks = [0, maps.shape[-1] - 1]
            axis.set_xticks(ticks if layer >= len(maps) - columns else [])
            axis.set_yticks(ticks if layer % columns == 0 else [])
        figure.supxlabel("key (token)", fontsize=8)
        figure.supylabel("query (token)", fontsize=8)
        figure.colorbar(image, ax=figure.axes, label="attention weight", extend="min", aspect=30)
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
