"""What attention patterns do: segmentation and reassembly step by step, the leak, sinks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sinklora.attention.dispatch import attend
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import PATTERNS, find_pattern
from sinklora.reproduction.patterns.attention_study import AFTER, SINKS
from sinklora.reproduction.patterns.attention_weights import visit_attention

FIRST = (1, 2, 4, 8)  # numbers of first tokens that a table of sinks has


def pattern_names(windows: bool) -> list[str]:
    """Names of the patterns there are that consist of windows, or of those that do not."""
    return [name for name, pattern in PATTERNS.items() if (pattern.windows() is not None) == windows]


def segmentation_steps(num_tokens: int, group_size: int) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Segmentation and reassembly (paper Fig. 4) on token numbers: (what happens, tokens [2, N], windows
    [2, N]).

    Row 0 is the un-shifted chunk of heads, row 1 the shifted one; `windows` numbers the window that each
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


def influence(pattern: Pattern, num_tokens: int, num_heads: int = 2) -> Tensor:
    """How much input j moves output i of `attend`: norm of the gradient, [H, N, N], on random inputs
    (float64), the same each time.
    """
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 1, num_heads, num_tokens, 8, dtype=torch.float64, generator=generator)
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
        expected, windows = 0, pattern.windows()
        if windows is not None and windows.wrapped:
            expected = windows.shifted_heads(num_heads) * (windows.group_tokens(num_tokens) // 2) ** 2
        rows.append(
            {"pattern": name, "pairs that see the future": leaks, "(G/2)² per shifted head": expected}
        )
    return pd.DataFrame(rows)


def attention_maps(model: PreTrainedModel, ids: Sequence[int] | np.ndarray) -> Tensor:
    """The model's own attention weights on one short document: [layers, H, N, N], float32."""
    maps: list[Tensor] = []
    visit_attention(model, ids, lambda layer, weights: maps.append(weights))
    return torch.stack(maps)


def sink_mass(maps: Tensor, tokens: int, after: int = AFTER) -> Tensor:
    """Mean share of attention that queries from `after` on give to the first `tokens` tokens: [layers,
    H].
    """
    return maps[:, :, after:, :tokens].sum(-1).mean(-1)


def uniform_mass(num_tokens: int, tokens: int, after: int = AFTER) -> float:
    """The same share if every query attended evenly to all it can see."""
    return float(np.mean([min(tokens, i + 1) / (i + 1) for i in range(after, num_tokens)]))


def sink_table(maps: Tensor) -> pd.DataFrame:
    """Per layer the share of attention on the first tokens (mean over heads), and the uniform share for
    comparison.
    """
    rows: list[dict[str, object]] = [
        {"layer": str(layer)} | {f"first {c}": float(sink_mass(maps, c)[layer].mean()) for c in FIRST}
        for layer in range(len(maps))
    ]
    rows.append(
        {"layer": "uniform attention"} | {f"first {c}": uniform_mass(maps.shape[-1], c) for c in FIRST}
    )
    return pd.DataFrame(rows)


def sink_verdict(maps: Tensor) -> str:
    """Whether the first tokens draw more attention than evenly spread attention would give them, in
    numbers.
    """
    mass = sink_mass(maps, SINKS)
    even = uniform_mass(maps.shape[-1], SINKS)
    above = int((mass > 2 * even).sum())
    return (
        f"The first {SINKS} tokens draw {float(mass.mean()):.1%} of attention on average and "
        f"{float(mass.max()):.1%} in the strongest head; even attention would give {even:.1%}. "
        f"{above} of {mass.numel()} heads give them more than twice that."
    )
