"""What notebooks need to look at attention: masks, segmentation and reassembly step by step, the leak,
sinks.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor
from transformers import PreTrainedModel

from sinklora.attention import attend
from sinklora.patterns import AttentionPattern, Pattern, find_pattern
from sinklora.report import COLUMN_WIDTH, PAGE_WIDTH, figure_style

WINDOW_GREYS = ("0.85", "0.6", "0.4", "0.95", "0.72", "0.5")
WINDOW_HATCHES = ("", "///", "", "\\\\\\", "...", "")


def mask_figure(patterns: Sequence[str | Pattern], num_tokens: int, num_heads: int = 2) -> Figure:
    """One column per pattern, one row for the first head and one for the last: black where query i sees
    key j.

    Under each column the pattern's density: its visible pairs as a share of full causal attention's.
    """
    found = [find_pattern(pattern) for pattern in patterns]
    names = [pattern if isinstance(pattern, str) else "" for pattern in patterns]
    with figure_style():
        figure, axes = plt.subplots(
            2, len(found), figsize=(PAGE_WIDTH, 2.2 + PAGE_WIDTH / len(found)), squeeze=False
        )
        for column, (name, pattern) in enumerate(zip(names, found, strict=True)):
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


def segmentation_steps(num_tokens: int, group_size: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Segmentation and reassembly (paper Fig. 4) on token numbers: (what happens, tokens [2, N], windows
    [2, N]).

    Row 0 is the un-shifted chunk of heads, row 1 the shifted one; ``windows`` numbers the window that each
    place lies in.
    """
    if num_tokens % group_size or group_size % 2:
        raise ValueError(
            f"num_tokens={num_tokens}, group_size={group_size}: "
            "expected an even group size that divides the tokens"
        )
    tokens = np.arange(num_tokens)
    windows = tokens // group_size
    rolled = np.roll(tokens, -(group_size // 2))
    ragged = (tokens + group_size // 2) // group_size
    return [
        ("heads split in two chunks", np.stack([tokens, tokens]), np.zeros((2, num_tokens), int)),
        (
            "S² with wrap-around: second chunk rolled by G/2, cut in windows",
            np.stack([tokens, rolled]),
            np.stack([windows, windows]),
        ),
        (
            "tokens reassembled; half windows at both ends (S² without wrap-around)",
            np.stack([tokens, tokens]),
            np.stack([windows, ragged]),
        ),
        (
            "all heads back in their un-shifted windows (SF-Attn, before sinks)",
            np.stack([tokens, tokens]),
            np.stack([windows, windows]),
        ),
    ]


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


def influence(
    pattern: Pattern, num_tokens: int, num_heads: int = 2, head_size: int = 8, seed: int = 0
) -> Tensor:
    """How much input j moves output i of `attend`: norm of the gradient, [H, N, N], on random inputs
    (float64).
    """
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(
        3, 1, num_heads, num_tokens, head_size, dtype=torch.float64, generator=generator
    )
    value.requires_grad_(True)
    output = attend(query, key, value, pattern)
    moved = torch.zeros(num_heads, num_tokens, num_tokens, dtype=torch.float64)
    for i in range(num_tokens):
        (gradient,) = torch.autograd.grad(output[:, :, i].sum(), value, retain_graph=True)
        moved[:, i] = gradient[0].norm(dim=-1)
    return moved


def leak_table(patterns: Sequence[str], num_tokens: int, num_heads: int = 2) -> pd.DataFrame:
    """Pairs (output i, input j > i) with a gradient that is not zero, counted; and (G/2)² per shifted head
    beside them.
    """
    rows = []
    for name in patterns:
        pattern = find_pattern(name)
        leaks = int((influence(pattern, num_tokens, num_heads).triu(1) != 0).sum())
        expected = 0
        if isinstance(pattern, AttentionPattern) and pattern.wrapped:
            expected = pattern.shifted_heads(num_heads) * (pattern.group_tokens(num_tokens) // 2) ** 2
        rows.append(
            {"pattern": name, "pairs that see the future": leaks, "(G/2)² per shifted head": expected}
        )
    return pd.DataFrame(rows)


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


@torch.inference_mode()
def attention_maps(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """The model's own attention weights on one document: [layers, H, N, N], float32."""
    tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None]
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        found = model(tokens, output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation(implementation)
    return torch.stack([layer[0].float() for layer in found])


def sink_mass(maps: Tensor, tokens: int, after: int = 64) -> Tensor:
    """Mean share of attention that queries from ``after`` on give to the first ``tokens`` tokens: [layers,
    H].
    """
    return maps[:, :, after:, :tokens].sum(-1).mean(-1)


def uniform_mass(num_tokens: int, tokens: int, after: int = 64) -> float:
    """The same share if every query attended evenly to all it can see."""
    return float(np.mean([min(tokens, i + 1) / (i + 1) for i in range(after, num_tokens)]))


def sink_table(maps: Tensor, counts: Sequence[int] = (1, 2, 4, 8)) -> pd.DataFrame:
    """Per layer the share of attention on the first tokens (mean over heads), and the uniform share for
    comparison.
    """
    rows: list[dict[str, object]] = [
        {"layer": str(layer)} | {f"first {c}": float(sink_mass(maps, c)[layer].mean()) for c in counts}
        for layer in range(len(maps))
    ]
    rows.append(
        {"layer": "uniform attention"} | {f"first {c}": uniform_mass(maps.shape[-1], c) for c in counts}
    )
    return pd.DataFrame(rows)


def sink_verdict(maps: Tensor, tokens: int = 4) -> str:
    """Whether the first tokens draw more attention than evenly spread attention would give them, in
    numbers.
    """
    mass = sink_mass(maps, tokens)
    even = uniform_mass(maps.shape[-1], tokens)
    above = int((mass > 2 * even).sum())
    return (
        f"The first {tokens} tokens draw {float(mass.mean()):.1%} of attention on average and "
        f"{float(mass.max()):.1%} in the strongest head; even attention would give {even:.1%}. "
        f"{above} of {mass.numel()} heads give them more than twice that."
    )


def heavy_hitter_share(maps: Tensor) -> Tensor:
    """Share of all attention received by the k most attended keys, cumulative, mean over heads: [layers,
    N].
    """
    received = maps.sum(2).sort(-1, descending=True).values.cumsum(-1)
    return (received / received[..., -1:]).mean(1)


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
    """Sliders for tokens, group size, sinks and shifted heads that redraw the mask (needs a running
    notebook).
    """
    import ipywidgets

    def draw(tokens: int, group: int, sinks: int, shifted: float) -> None:
        pattern = AttentionPattern(group_size=2 * group, sink_tokens=sinks, shifted=shifted)
        plt.show(mask_figure([pattern], tokens, num_heads=4))

    return ipywidgets.interactive(
        draw,
        tokens=ipywidgets.IntSlider(32, 4, 96, description="N tokens"),
        group=ipywidgets.IntSlider(4, 1, 24, description="G / 2"),
        sinks=ipywidgets.IntSlider(4, 0, 16, description="sinks s"),
        shifted=ipywidgets.FloatSlider(0.0, min=0, max=1, step=0.25, description="shifted"),
    )
