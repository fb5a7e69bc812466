"""The most that any query looks at each key, where every query sees all keys, without an N x N tensor.

One pass gives the logarithm of each query's softmax sum (on CUDA FlashAttention, as for column sums), and a
kernel takes the maxima of exp(q.k - log-sum-exp) column by column: Triton's on CUDA, one in C++ on the CPU.
What they do not serve goes through blocks of scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinklora.cache.column_sums import (
    COLUMNS,
    check_kernel_inputs,
    flash_with_log_sum_exp,
    has_kernel_for,
    kernel_sizes,
)
from sinklora.cache.column_sums_cpu import has_compiled_maxima, log_sum_exp_on_cpu, max_columns_on_cpu
from sinklora.cache.scored_attention import blocks, precise


def replay_maxima(
    query: Tensor,
    key: Tensor,
    scale: float,
    *,
    counts: Sequence[int] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """The largest share of attention that each key gets from a query or a grouped head: [B, Hkv, L].

    `query` [B, H, Q, D], `key` [B, Hkv, L, D] -> float32 (float64 for float64). No query is masked from any
    key: each has one softmax over all of them. `counts`: only so many first queries of each row are asked
    (all unless given; a row without any gets zeros). `valid` [B, Hkv, L]: False hides a key, which gets 0.
    Not differentiable.
    """
    if counts is None and valid is None and has_kernel_for(query):
        # The pass is wanted for its log-sum-exp: any values will do.
        _, log_sum_exp = flash_with_log_sum_exp(query, key, key, scale, causal=False)
        return max_columns(query, key, log_sum_exp, scale)
    if counts is None and valid is None and has_compiled_maxima(query, key):
        return max_columns_on_cpu(query, key, log_sum_exp_on_cpu(query, key, scale), scale)
    return replay_maxima_in_blocks(query, key, scale, counts=counts, valid=valid)


def max_columns(query: Tensor, key: Tensor, log_sum_exp: Tensor, scale: float) -> Tensor:
    """Maxima over queries and grouped heads of the softmax over all keys: [B, Hkv, L] in float32, by Triton.

    `query` [B, H, Q, D], `key` [B, Hkv, L, D], `log_sum_exp` [B, H, Q] (natural logarithm) of each query's
    scores. Raises ValueError for heads larger than 256, ImportError without Triton.
    """
    check_kernel_inputs(query, log_sum_exp, "replay_maxima_in_blocks")
    import triton

    from sinklora.cache.column_maxima_kernel import max_columns_kernel

    batch, queries = query.shape[0], query.shape[2]
    kv_heads, length = key.shape[1:3]
    maxima = torch.empty(batch, kv_heads, length, dtype=torch.float32, device=query.device)
    with torch.cuda.device_of(query):  # Triton launches on the current card
        max_columns_kernel[(batch * kv_heads, triton.cdiv(length, COLUMNS))](
            query.contiguous(),
            key.contiguous(),
            log_sum_exp.float().contiguous(),
            maxima,
            queries,
            length,
            scale,
            **kernel_sizes(query, key),
        )
    return maxima


def replay_maxima_in_blocks(
    query: Tensor,
    key: Tensor,
    scale: float,
    *,
    counts: Sequence[int] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """What `replay_maxima` gives, by PyTorch's own operators alone, a block of queries at a time."""
    batch, heads, queries, _ = query.shape
    kv_heads, length = key.shape[1:3]
    groups = heads // kv_heads
    grouped = query.unflatten(1, (kv_heads, groups))
    maxima = torch.zeros(batch, kv_heads, length, dtype=precise(query.dtype), device=query.device)
    keys = key.to(maxima.dtype).contiguous()  # every block would convert and copy all of them
    for row, part, begin, end in blocks(key, queries, groups):
        end = end if counts is None else min(end, counts[row])
        if begin >= end:
            continue
        block = grouped[row, part, :, begin:end].to(maxima.dtype) * scale
        scores = block.flatten(1, 2) @ keys[row, part].mT
        if valid is not None:
            scores.masked_fill_(~valid[row, part, None], float("-inf"))
        shares = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
        shares.div_(shares.sum(-1, keepdim=True))
        part_maxima = maxima[row, part]
        torch.maximum(part_maxima, shares.amax(1), out=part_maxima)
    return maxima
