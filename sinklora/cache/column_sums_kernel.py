"""The Triton kernel behind `column_sums`; importing this module needs Triton."""

import triton
import triton.language as tl


@triton.jit
def sum_columns_kernel(
    query,  # [B * H, Q, D]
    key,  # [B * Hkv, L, D]
    log_sum_exp,  # [B * H, Q], natural logarithm
    weights,  # [B, Q]
    sums,  # [B * Hkv, L], float32
    kv_heads,
    queries,
    length,
    scale,
    groups: tl.constexpr,
    size: tl.constexpr,
    padded_size: tl.constexpr,
    weighted: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """One program for each key/value head and block of keys: it passes over the queries that see them.

    No two programs write the same sum, so the result does not depend on their order.
    """
    head = tl.program_id(0).to(tl.int64)  # offsets of long batches are more than 32 bits hold
    batch = head // kv_heads
    at_key = tl.program_id(1) * columns + tl.arange(0, columns)
    at_size = tl.arange(0, padded_size)
    inside = (at_key[:, None] < length) & (at_size[None, :] < size)
    keys = tl.load(key + (head * length + at_key[:, None]) * size + at_size[None, :], mask=inside, other=0.0)
    total = tl.zeros([columns], dtype=tl.float32)
    before = length - queries  # keys that every query sees
    first = tl.maximum(tl.program_id(1) * columns - before, 0) // rows * rows
    for group in range(groups):
        query_head = head * groups + group
        for begin in range(first, queries, rows):
            at_query = begin + tl.arange(0, rows)
            real = at_query < queries
            here = query + (query_head * queries + at_query[:, None]) * size + at_size[None, :]
            block = tl.load(here, mask=real[:, None] & (at_size[None, :] < size), other=0.0)
            norm = tl.load(log_sum_exp + query_head * queries + at_query, mask=real, other=0.0)
            scores = tl.dot(block, tl.trans(keys), input_precision="ieee") * scale
            seen = real[:, None] & (before + at_query[:, None] >= at_key[None, :])
            share = tl.where(seen, tl.exp(scores - norm[:, None]), 0.0)
            if weighted:
                weight = tl.load(weights + batch * queries + at_query, mask=real, other=0.0)
                share = share * weight[:, None]
            total += tl.sum(share, axis=0)
    tl.store(sums + head * length + at_key, total, mask=at_key < length)
