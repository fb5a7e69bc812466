"""Heads and tokens as the kernels want them: runs of heads with the same windows, and flattened rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.pattern import Pattern


def head_chunks(
    query: Tensor, key: Tensor, value: Tensor, pattern: AttentionPattern
) -> Iterator[tuple[Tensor, Tensor, Tensor, bool]]:
    """Runs of heads that are all shifted or all not, with their key/value heads, never repeated.

    Where the shift begins inside a group of query heads, each side of that group is a chunk of its own.
    """
    heads, ratio = query.shape[1], query.shape[1] // key.shape[1]
    first = heads - pattern.shifted_heads(heads)
    before, after = first - first % ratio, first + -first % ratio
    cuts = sorted({0, before, first, after, heads})
    queries = split(query, [end - begin for begin, end in pairwise(cuts)], 1)
    if before == after:
        kv_cuts = [end // ratio - begin // ratio for begin, end in pairwise(cuts)]
        keys, values = split(key, kv_cuts, 1), split(value, kv_cuts, 1)
    else:
        spans = [slice(begin // ratio, -(-end // ratio)) for begin, end in pairwise(cuts)]
        keys, values = tuple(key[:, s] for s in spans), tuple(value[:, s] for s in spans)
    for begin, q, k, v in zip(cuts, queries, keys, values, strict=False):
        yield q, k, v, begin >= first


def windows_in(pattern: Pattern) -> AttentionPattern:
    """The windows that a pattern consists of. Raises ValueError for one of another kind."""
    windows = pattern.windows()
    if windows is None:
        raise ValueError(f"{type(pattern).__name__} does not consist of windows")
    return windows


def split(x: Tensor, sizes: list[int], dim: int) -> tuple[Tensor, ...]:
    """`x.split`: its backward writes the gradient once, where slices would add up. One piece costs
    nothing.
    """
    return (x,) if len(sizes) == 1 else x.split(sizes, dim)


def join(outputs: list[Tensor], dim: int) -> Tensor:
    """[B, H, N, D] joined along heads (1) or tokens (2); in memory [B, N, H, D], as SDPA returns it."""
    if len(outputs) == 1:
        return outputs[0]
    return torch.cat([x.transpose(1, 2) for x in outputs], 3 - dim).transpose(1, 2)


def one_document(query: Tensor, ids: Tensor | None) -> Tensor:
    """Document ids [B, N]; where none are given, each row is one document."""
    return query.new_zeros(query.shape[0], query.shape[2], dtype=torch.long) if ids is None else ids


def flat_rows(x: Tensor) -> Tensor:
    """[B, H, N, D] -> [B*N, H, D]."""
    return x.transpose(1, 2).flatten(0, 1)


def unflat_rows(x: Tensor, batch: int) -> Tensor:
    """[B*N, H, D] -> [B, H, N, D]."""
    return x.unflatten(0, (batch, -1)).transpose(1, 2)
