"""Causal attention that also says how much attention each key received, without an N x N tensor.

The column sums of the softmax are what H2O scores tokens by (arXiv 2306.14048, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.column_sums import flash_with_log_sum_exp, has_kernel, sum_columns
from sinklora.cache.column_sums_cpu import flash_on_cpu, has_compiled_kernel, sum_columns_on_cpu


def precise(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which attention weights are summed: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def attend_and_sum(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of the last Q of L tokens, and the sum over queries and grouped heads of its softmax.

    `query` [B, H, Q, D], `key` and `value` [B, Hkv, L, D] -> [B, H, Q, D] of query's dtype, and sums
    [B, Hkv, L] in float32 (float64 for float64). The first L - Q keys are seen by every query, the others
    causally. `weights` [B, Q]: how much each query counts in the sums (1 unless given). `valid` [B, Hkv, L]:
    False hides a key.
    Whole sequences go through FlashAttention and a kernel that hold no scores at all, on CUDA in half
    precision, and on the CPU from 1024 tokens on in all but float64; everything else in blocks of queries
    times L. The kernel for the CPU is compiled when it is first needed. Not differentiable.
    """
    if valid is None and has_kernel(query, key):
        output, log_sum_exp = flash_with_log_sum_exp(query, key, value, scale)
        return output, sum_columns(query, key, log_sum_exp, scale, weights=weights)
    if valid is None and has_compiled_kernel(query, key, value):
        output, log_sum_exp = flash_on_cpu(query, key, value, scale)
        return output, sum_columns_on_cpu(query, key, log_sum_exp, scale, weights=weights)
    return attend_and_sum_in_blocks(query, key, value, scale, weights=weights, valid=valid)


def attend_and_sum_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    weights: Tensor | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What `attend_and_sum` gives, by PyTorch's own operators alone, a block of queries at a time."""
    batch, heads, queries, size = query.shape
    kv_heads, length = key.shape[1:3]
    groups = heads // kv_heads
    grouped = query.unflatten(1, (kv_heads, groups))
    key, value = key.contiguous(), value.contiguous()  # every block would copy all of a view
    output = torch.empty(batch, kv_heads, groups, queries, size, dtype=query.dtype, device=query.device)
    sums = torch.zeros(batch, kv_heads, length, dtype=precise(query.dtype), device=query.device)
    ones = sums.new_ones(queries)
    for row, part, begin, end in blocks(key, queries, groups):
        seen = length - queries + end
        block = grouped[row, part, :, begin:end].to(sums.dtype) * scale
        hidden = None if valid is None else ~valid[row, part, :seen]
        received = _softmax(block.flatten(1, 2), key[row, part, :seen], end - begin, hidden)
        attended = received.to(value.dtype) @ value[row, part, :seen]
        output[row, part, :, begin:end] = attended.unflatten(1, (groups, end - begin))
        counted = ones[begin:end] if weights is None else weights[row, begin:end].to(sums.dtype)
        counted = counted.repeat(groups).expand(len(received), 1, -1)
        sums[row, part, :seen] += (counted @ received).squeeze(1)
    return output.flatten(1, 2), sums


def attend_once(
    query: Tensor, key: Tensor, value: Tensor, scale: float, weights: Tensor, visible: Tensor | None = None
) -> Tensor:
    """Attention of one query a row; its softmax is written to `weights` [B, Hkv, groups, L].

    `query` [B, H, 1, D], `key` and `value` [B, Hkv, L, D] -> [B, H, 1, D]; `weights` in float32 (float64 for
    float64); `visible` [B, 1, 1, L]: False hides a key. As few operators as there can be: on a card one row
    is as slow as their number.
    """
    batch, heads, _, size = query.shape
    kv_heads = key.shape[1]
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    grouped = query.reshape(batch * kv_heads, heads // kv_heads, size)
    nothing = grouped[:1, :1, :1]  # beta=0: it is not looked at
    scores = torch.baddbmm(nothing, grouped, keys.mT, beta=0, alpha=scale).unflatten(0, (batch, kv_heads))
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    torch.softmax(scores, -1, dtype=weights.dtype, out=weights)
    output = torch.bmm(weights.to(values.dtype).flatten(0, 1), values)
    return output.reshape(batch, heads, 1, -1)


def attend_newest(
    query: Tensor, key: Tensor, value: Tensor, scale: float, visible: Tensor | None = None
) -> Tensor:
    """Attention of one query a row, of which nothing but the output is wanted, in one operator.

    `query` [B, H, 1, D], `key` and `value` [B, Hkv, L, D] -> [B, H, 1, D]; `visible` [B, 1, 1, L]: False
    hides a key. Heads that share keys are several queries of one head: kernels then read each key once. Given
    as heads, on a processor without matrix instructions bfloat16 takes six times as long.
    """
    batch, heads, _, size = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, size)
    output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=visible, scale=scale)
    return output.reshape(batch, heads, 1, -1)


def blocks(key: Tensor, queries: int, groups: int = 1) -> Iterator[tuple[int, slice, int, int]]:
    """Pieces of [B, Hkv, groups, queries, L] scores: a batch row, heads of `key`, first and last query."""
    batch, heads, length = key.shape[:3]
    # What stays near a core is fastest; a card wants to be filled.
    largest = 2**21 if key.device.type == "cpu" else 2**25
    rows = min(queries, max(16, min(128, largest // (groups * length))))
    heads_at_once = max(1, largest // (rows * groups * length))
    for row, head, begin in product(range(batch), range(0, heads, heads_at_once), range(0, queries, rows)):
        yield row, slice(head, head + heads_at_once), begin, min(begin + rows, queries)


def _softmax(block: Tensor, key: Tensor, queries: int, hidden: Tensor | None) -> Tensor:
    """The causal softmax [P, groups * queries, seen] in the block's dtype; float16 would round its scores."""
    scores = block @ key.to(block.dtype).mT
    # Only the newest keys can be in a query's future.
    corner = scores.unflatten(1, (-1, queries))[..., -queries:]
    future = torch.ones(queries, queries, dtype=torch.bool, device=scores.device).triu_(1)
    corner.masked_fill_(future, float("-inf"))
    if hidden is not None:
        scores.masked_fill_(hidden[:, None], float("-inf"))
    exponents = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return exponents.div_(exponents.sum(-1, keepdim=True))


def attention_rows(query: Tensor, key: Tensor, scale: float, valid: Tensor) -> Tensor:
    """The softmax itself for a few queries, summed over grouped heads: [B, Hkv, Q, L] in float32.

    `query` [B, H, Q, D], `key` [B, Hkv, L, D]; `valid` [B, Hkv, Q, L]: False hides a key from a query; a
    query that sees nothing has a row of zeros.
    """
    kv_heads = key.shape[1]
    grouped = (query * scale).unflatten(1, (kv_heads, -1))
    scores = grouped @ key.unsqueeze(2).mT
    scores = scores.to(precise(scores.dtype)).masked_fill(~valid.unsqueeze(2), float("-inf"))
    return scores.softmax(-1).nan_to_num(0.0).sum(2)
