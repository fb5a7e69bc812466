"""`attend_shard`: exact attention by a pattern over rows that are cut along the sequence."""

from __future__ import annotations

from torch import Tensor

from sinklora.attention.backends import attend_laid_out
from sinklora.attention.dispatch import check_scale, check_tensors
from sinklora.attention.layout import flat_rows, head_chunks, join, unflat_rows
from sinklora.attention.pattern import Pattern
from sinklora.attention.sequence_parallel.collectives import exchange
from sinklora.attention.sequence_parallel.shard import LocalWindows, SequenceShard


def attend_shard(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    shard: SequenceShard,
    *,
    scale: float | None = None,
) -> Tensor:
    """What `attend` gives this process's part of the rows, when every process of the group calls this.

    `query` [B, H, S, D], `key` [B, Hkv, S, D] and `value` [B, Hkv, S, Dv] of the shard, as `attend` takes
    them -> [B, H, S, Dv]. Keys and values of other shards that the pattern lets its queries see are received,
    and their gradients sent back, so that a backward pass is for all processes together too. Windows may be
    longer than a shard: what a rank receives grows with them, up to all earlier keys with full attention.

    TypeError or ValueError for inputs that do not fit the shard, and for a pattern without windows.
    """
    check_tensors(query, key, value)
    check_scale(scale)
    batch, heads, tokens, size = query.shape
    expected = [shard.document_ids.shape[0], shard.document_ids.shape[1] // shard.ranks]
    if [batch, tokens] != expected:
        raise ValueError(f"query must have the shard's {expected} rows and tokens, got {[batch, tokens]}")
    layout = shard.layout(pattern, heads, key.shape[1])
    held = exchange(flat_rows(key), flat_rows(value), layout.routes, shard.group)
    scale = size**-0.5 if scale is None else float(scale)
    ratio, outputs, first = heads // key.shape[1], [], 0
    for q, _, _, shifted in head_chunks(query, key, value, layout.plan.pattern):
        place = layout.plan.group_of(first // ratio)
        outputs.append(_attend(q, *held[place], layout.local[shifted], place, scale))
        first += q.shape[1]
    return join(outputs, dim=1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, local: LocalWindows, place: int, scale: float
) -> Tensor:
    """One run of heads with the same windows: query [B, H, S, D], held keys and values [T, Hkv, D]."""
    select, rows = local.select[place], flat_rows(query)
    if len(select) < len(key):
        key, value = key[select], value[select]
    # Kernels want a query for every key: those of others' tokens are zeros, whose outputs nobody takes.
    padded = rows.new_zeros(len(select), *rows.shape[1:]).index_copy(0, local.own, rows)
    output = attend_laid_out(padded, key, value, local.rows, local.batches, scale)
    return unflat_rows(output[local.own], query.shape[0])
