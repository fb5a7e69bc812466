"""Ways to compute the same attention. Inputs are already checked: see dispatch.py, the entrance.

`dense` is the truth and holds all scores; `masked` holds the mask alone. `sdpa` takes windows as the batch of
plain causal attention, with no mask in memory (SinkLoRA, arXiv 2406.05678, section 3.1: segmentation and
reassembly, then global sinks). `sdpa_tiles` is `sdpa` with a compiled backward pass (causal_backward.py)
where the processor has tiles. `flash_attn` and `varlen` do the same with one call for windows of any size,
the kernel of the package and PyTorch's own; `flex` skips the blocks that a pattern leaves empty. The last
three need CUDA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.attention.causal_backward import causal_attention
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.layout import (
    flat_rows,
    head_chunks,
    join,
    one_document,
    split,
    unflat_rows,
    windows_in,
)
from sinklora.attention.packed_windows import Rows, collect, padded_rows, rearrange, windows_of
from sinklora.attention.pattern import Pattern
from sinklora.attention.varlen_windows import attend_windows, flash_attn_kernel, torch_kernel

HALF_PRECISION = (torch.float16, torch.bfloat16)

LENGTHS = 4096  # that FlexAttention is compiled for, at most, in one process

Causal = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # query, key, value, scale


def dense(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float, ids: Tensor | None
) -> Tensor:
    """The reference: all scores, masked; half precision is computed in float32."""
    heads, num_tokens = query.shape[1:3]
    precise = torch.promote_types(query.dtype, torch.float32)
    key, value = (x.repeat_interleave(heads // x.shape[1], 1).to(precise) for x in (key, value))
    scores = query.to(precise) @ key.transpose(-1, -2) * scale
    mask = pattern.visible(heads, num_tokens, ids, device=query.device)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return (weights @ value).to(query.dtype)


def masked(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float, ids: Tensor | None
) -> Tensor:
    """Any pattern in PyTorch's own kernels: the mask of a row is in memory, the scores are not."""
    mask = pattern.visible(query.shape[1], query.shape[2], ids, device=query.device)
    mask = mask if mask.ndim == 4 else mask[None]  # of three dimensions no kernel takes a mask
    return _kernel(query, key, value, scale, attn_mask=mask)


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float, ids: Tensor | None
) -> Tensor:
    """Windows as the batch of plain causal SDPA, chunk of heads by chunk of heads."""
    return _by_windows(query, key, value, pattern, scale, ids, _causal)


def sdpa_tiles(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float, ids: Tensor | None
) -> Tensor:
    """The same with a compiled backward pass, for bfloat16 on a processor with tiles; `sdpa` elsewhere."""
    return _by_windows(query, key, value, pattern, scale, ids, causal_attention)


def _by_windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    scale: float,
    ids: Tensor | None,
    causal: Causal,
) -> Tensor:
    windows, num_tokens = windows_in(pattern), query.shape[2]
    outputs = []
    for q, k, v, shifted in head_chunks(query, key, value, windows):
        runs, roll = _runs(windows, num_tokens, shifted)
        # A window that begins among the sinks sees fewer of them: the index counts them window by window.
        uneven = len(runs) > 1 and runs[0][1] < windows.sink_tokens
        if ids is not None or uneven:
            outputs.append(_indexed(q, k, v, windows, shifted, scale, ids, causal))
        else:
            outputs.append(_regular(q, k, v, windows.sink_tokens, runs, roll, scale, causal))
    return join(outputs, dim=1)


def _regular(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: int,
    runs: list[tuple[int, int]],
    roll: int,
    scale: float,
    causal: Causal,
) -> Tensor:
    """Rows without documents: equal windows are views, copied only where the memory layout demands it."""
    if runs[0] == (1, query.shape[2]) and not roll:
        return causal(query, key, value, scale)
    sizes = [count * length for count, length in runs]
    tensors = [x.roll(-roll, 2) if roll else x for x in (query, key, value)]
    pieces = zip(*(split(x, sizes, 2) for x in tensors), strict=True)
    outputs: list[Tensor] = []
    prefix: list[Tensor] = []
    for (count, length), piece in zip(runs, pieces, strict=True):
        own = [x.unflatten(2, (count, length)).transpose(1, 2).flatten(0, 1) for x in piece]
        if prefix:
            # Sinks before queries, keys and values: plain causality then sees exactly sinks and own past.
            own = [torch.cat([s.repeat_interleave(count, 0), x], 2) for s, x in zip(prefix, own, strict=True)]
        output = causal(own[0], own[1], own[2], scale)[:, :, sinks if prefix else 0 :]
        outputs.append(output.unflatten(0, (-1, count)).transpose(1, 2).flatten(2, 3))
        if sinks and not prefix:
            prefix = [x[:, :, :sinks] for x in piece]
    joined = join(outputs, dim=2)
    return joined.roll(roll, 2) if roll else joined


def _indexed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: AttentionPattern,
    shifted: bool,
    scale: float,
    ids: Tensor | None,
    causal: Causal,
) -> Tensor:
    """Any windows: gathered by index, padded at the end, where causality hides the padding."""
    rows, batches = padded_rows(windows_of(pattern, shifted, one_document(query, ids)))
    q, k, v = (flat_rows(x) for x in (query, key, value))
    return unflat_rows(attend_laid_out(q, k, v, rows, batches, scale, causal), query.shape[0])


def attend_laid_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Rows,
    batches: list[tuple[int, int]],
    scale: float,
    causal: Causal | None = None,
) -> Tensor:
    """Attention in the windows that `padded_rows` laid out: flat rows [T, H, D] -> [T, H, Dv]."""
    laid_out = [rearrange(x, rows) for x in (query, key, value)]
    sizes = [count * width for count, width in batches]
    outputs = []
    for (count, _), *piece in zip(batches, *(x.split(sizes) for x in laid_out), strict=True):
        own = [x.unflatten(0, (count, -1)).transpose(1, 2) for x in piece]
        output = (causal or _causal)(own[0], own[1], own[2], scale)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return collect(torch.cat(outputs), rows)


def flash_attn(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float, ids: Tensor | None
) -> Tensor:
    """Windows of any size in one call of the kernel of the package flash-attn, chunk of heads by chunk."""
    return attend_windows(query, key, value, pattern, scale, ids, flash_attn_kernel())


def varlen(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float, ids: Tensor | None
) -> Tensor:
    """The same in one call of PyTorch's own kernel."""
    return attend_windows(query, key, value, pattern, scale, ids, torch_kernel())


def flex(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float, ids: Tensor | None
) -> Tensor:
    """FlexAttention with a block mask made from the pattern's `mask_mod`."""
    flex_attention, create_block_mask = _compiled_flex()
    batch, heads, num_tokens, _ = query.shape
    # Each pattern and length is a compilation of its own, of which PyTorch allows few.
    with torch._dynamo.config.patch(recompile_limit=LENGTHS, accumulated_recompile_limit=LENGTHS):
        mask = create_block_mask(
            pattern.mask_mod(heads, num_tokens, ids),
            B=None if ids is None else batch,
            H=heads,
            Q_LEN=num_tokens,
            KV_LEN=num_tokens,
            device=query.device,
        )
        grouped = heads != key.shape[1]
        return flex_attention(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped)


@functools.cache
def _compiled_flex() -> tuple[Callable[..., Tensor], Callable[..., Any]]:
    """Compiled on first use: uncompiled, the one would hold all scores and the other the whole mask.

    Static shapes, because a pattern's numbers are constants of the kernel.
    """
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = functools.partial(torch.compile, dynamic=False, fullgraph=True)
    return compiled(flex_attention), compiled(create_block_mask)


BACKENDS: dict[str, Callable[..., Tensor]] = {
    "dense": dense,
    "masked": masked,
    "sdpa": sdpa,
    "sdpa_tiles": sdpa_tiles,
    "flash_attn": flash_attn,
    "varlen": varlen,
    "flex": flex,
}


def _runs(pattern: AttentionPattern, num_tokens: int, shifted: bool) -> tuple[list[tuple[int, int]], int]:
    """Runs of windows (count, length) in order, and how far to roll rows back for every window to be in one
    piece. Before sinks go to the others, the first window is a run of its own.
    """
    runs = pattern.window_runs(num_tokens, shifted)
    if pattern.wrapped and shifted and len(runs) > 1:
        *between, (_, last) = runs[1:]
        joined = runs[0][1] + last
        if between and between[-1][1] == joined:
            return [*between[:-1], (between[-1][0] + 1, joined)], runs[0][1]
        return [*between, (1, joined)], runs[0][1]
    (count, length), *rest = runs
    if pattern.sink_tokens and count > 1:
        return [(1, length), (count - 1, length), *rest], 0
    return runs, 0


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return _kernel(query, key, value, scale, is_causal=True)


def _kernel(query: Tensor, key: Tensor, value: Tensor, scale: float, **seen: Any) -> Tensor:
    """PyTorch's kernels, for key heads that may be fewer; `seen`: `is_causal` or `attn_mask`."""
    attention: Callable[..., Tensor] = functools.partial(F.scaled_dot_product_attention, scale=scale, **seen)
    if query.shape[1] == key.shape[1]:
        return attention(query, key, value)
    if query.is_cuda and query.dtype not in HALF_PRECISION:
        # CUDA's grouped kernels take half precision only; what else it has would hold all scores.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        return attention(query, key, value)
    return attention(query, key, value, enable_gqa=True)
