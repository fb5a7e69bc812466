"""Five ways to compute the same attention. Inputs are already checked: see dispatch.py, the entrance.

`dense` is the truth and holds the mask. `sdpa` takes windows as the batch of plain causal attention, with no
mask in memory (SinkLoRA, arXiv 2406.05678, section 3.1: segmentation and reassembly, then global sinks).
`sdpa_tiles` is `sdpa` with a compiled backward pass (causal_backward.py) where the processor has tiles.
`flash_attn` does the same with one varlen call; `flex` skips the blocks that a pattern leaves empty. The last
two need CUDA.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.attention.causal_backward import causal_attention
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.packed_windows import collect, packed_rows, padded_rows, rearrange, windows_of
from sinklora.attention.pattern import Pattern

HALF_PRECISION = (torch.float16, torch.bfloat16)

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
    windows, num_tokens = _windows(pattern), query.shape[2]
    outputs = []
    for q, k, v, shifted in _head_chunks(query, key, value, windows):
        runs, roll = _runs(windows, num_tokens, shifted)
        # A window that begins among the sinks sees fewer of them: the index counts them window by window.
        uneven = len(runs) > 1 and runs[0][1] < windows.sink_tokens
        if ids is not None or uneven:
            outputs.append(_indexed(q, k, v, windows, shifted, scale, ids, causal))
        else:
            outputs.append(_regular(q, k, v, windows.sink_tokens, runs, roll, scale, causal))
    return _join(outputs, dim=1)


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
    pieces = zip(*(_split(x, sizes, 2) for x in tensors), strict=True)
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
    joined = _join(outputs, dim=2)
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
    rows, batches = padded_rows(windows_of(pattern, shifted, _ids(query, ids)))
    laid_out = [rearrange(_flatten(x), rows) for x in (query, key, value)]
    sizes = [count * width for count, width in batches]
    outputs = []
    for (count, _), *piece in zip(batches, *(x.split(sizes) for x in laid_out), strict=True):
        own = [x.unflatten(0, (count, -1)).transpose(1, 2) for x in piece]
        outputs.append(causal(own[0], own[1], own[2], scale).transpose(1, 2).flatten(0, 1))
    return _unflatten(collect(torch.cat(outputs), rows), query.shape[0])


def flash_attn(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float, ids: Tensor | None
) -> Tensor:
    """One varlen call per chunk of heads; its causal mask ends at the last key: [sinks; window] fit."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise ImportError(
            "backend='flash_attn' needs the package flash-attn: pip install 'sinklora[gpu]', "
            "or use backend='auto'"
        ) from error
    pattern = _windows(pattern)
    outputs = []
    for q, k, v, shifted in _head_chunks(query, key, value, pattern):
        windows = windows_of(pattern, shifted, _ids(query, ids))
        query_rows, query_starts = packed_rows(windows, with_sinks=False)
        key_rows, key_starts = packed_rows(windows, with_sinks=True)
        output = flash_attn_varlen_func(
            rearrange(_flatten(q), query_rows),
            rearrange(_flatten(k), key_rows),
            rearrange(_flatten(v), key_rows),
            query_starts,
            key_starts,
            int(query_starts.diff().max()),
            int(key_starts.diff().max()),
            softmax_scale=scale,
            causal=True,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        outputs.append(_unflatten(collect(output, query_rows), query.shape[0]))
    return _join(outputs, dim=1)


def flex(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, scale: float, ids: Tensor | None
) -> Tensor:
    """FlexAttention with a block mask made from the pattern's `mask_mod`."""
    flex_attention, create_block_mask = _compiled_flex()
    batch, heads, num_tokens, _ = query.shape
    # Each pattern and length is a compilation of its own; beyond the limit PyTorch would run uncompiled.
    with torch._dynamo.config.patch(recompile_limit=256):
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
    "sdpa": sdpa,
    "sdpa_tiles": sdpa_tiles,
    "flash_attn": flash_attn,
    "flex": flex,
}


def _head_chunks(
    query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern
) -> Iterator[tuple[Tensor, Tensor, Tensor, bool]]:
    """Runs of heads that are all shifted or all not, with their key/value heads, never repeated.

    Where the shift begins inside a group of query heads, each side of that group is a chunk of its own.
    """
    heads, ratio = query.shape[1], query.shape[1] // key.shape[1]
    first = heads - pattern.shifted_heads(heads)
    before, after = first - first % ratio, first + -first % ratio
    cuts = sorted({0, before, first, after, heads})
    queries = _split(query, [end - begin for begin, end in pairwise(cuts)], 1)
    if before == after:
        kv_cuts = [end // ratio - begin // ratio for begin, end in pairwise(cuts)]
        keys, values = _split(key, kv_cuts, 1), _split(value, kv_cuts, 1)
    else:
        spans = [slice(begin // ratio, -(-end // ratio)) for begin, end in pairwise(cuts)]
        keys, values = tuple(key[:, s] for s in spans), tuple(value[:, s] for s in spans)
    for begin, q, k, v in zip(cuts, queries, keys, values, strict=False):
        yield q, k, v, begin >= first


def _windows(pattern: Pattern) -> AttentionPattern:
    windows = pattern.windows()
    if windows is None:
        raise ValueError(f"{type(pattern).__name__} does not consist of windows")
    return windows


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
    if query.shape[1] == key.shape[1]:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    if query.is_cuda and query.dtype not in HALF_PRECISION:
        # CUDA's grouped kernels take half precision only; what else it has would hold all scores.
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)


def _split(x: Tensor, sizes: list[int], dim: int) -> tuple[Tensor, ...]:
    """`x.split`: its backward writes the gradient once, where slices would add up. One piece costs
    nothing.
    """
    return (x,) if len(sizes) == 1 else x.split(sizes, dim)


def _join(outputs: list[Tensor], dim: int) -> Tensor:
    """[B, H, N, D] joined along heads (1) or tokens (2); in memory [B, N, H, D], as SDPA returns it."""
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat([x.transpose(1, 2) for x in outputs], 3 - dim).transpose(1, 2)


def _ids(query: Tensor, ids: Tensor | None) -> Tensor:
    return query.new_zeros(query.shape[0], query.shape[2], dtype=torch.long) if ids is None else ids


def _flatten(x: Tensor) -> Tensor:
    """[B, H, N, D] -> [B*N, H, D]."""
    return x.transpose(1, 2).flatten(0, 1)


def _unflatten(x: Tensor, batch: int) -> Tensor:
    """[B*N, H, D] -> [B, H, N, D]."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)
