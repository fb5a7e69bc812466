"""The Triton kernel behind `column_maxima`; importing this module needs Triton."""

import triton
import triton.language as tl


@triton.jit
def max_columns_kernel(
    query,  # [B * H, Q, D]
    key,  # [B * Hkv, L, D]
    log_sum_exp,  # [B * H, Q], natural logarithm
    maxima,  # [B * Hkv, L], float32
    queries,
    length,
    scale,
    groups: tl.constexpr,
    size: tl.constexpr,
    padded_size: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """One program for each key/value head and block of keys: it passes over all queries of its group."""
    head = tl.program_id(0).to(tl.int64)  # offsets of long batches are more than 32 bits hold
    at_key = tl.program_id(1) * columns + tl.arange(0, columns)
    at_size = tl.arange(0, padded_size)
    inside = (at_key[:, None] < length) & (at_size[None, :] < size)
    keys = tl.load(key + (head * length + at_key[:, None]) * size + at_size[None, :], mask=inside, other=0.0)
    most = tl.full([columns], float("-inf"), dtype=tl.float32)
    for group in range(groups):
        query_head = head * groups + group
        for begin in range(0, queries, rows):
            at_query = begin + tl.arange(0, rows)
            real = at_query < queries
            here = query + (query_head * queries + at_query[:, None]) * size + at_size[None, :]
            block = tl.load(here, mask=real[:, None] & (at_size[None, :] < size), other=0.0)
            norm = tl.load(log_sum_exp + query_head * queries + at_query, mask=real, other=float("inf"))
            scores = tl.dot(block, tl.trans(keys), input_precision="ieee") * scale
            most = tl.maximum(most, tl.max(scores - norm[:, None], axis=0))
    tl.store(maxima + head * length + at_key, tl.exp(most), mask=at_key < length)
