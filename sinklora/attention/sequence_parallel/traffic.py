"""Bytes that ranks send for attention over cut rows, beside ring attention's and Ulysses'."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import mean

import torch

from sinklora.attention.pattern import Pattern
from sinklora.attention.sequence_parallel.plan import SequencePlan, windows_to_cut
from sinklora.ranges import check_count


@dataclass(frozen=True)
class AttentionShape:
    """One attention layer: query heads, key/value heads, the size of a head, and the bytes of a number."""

    heads: int
    kv_heads: int
    head_size: int
    bytes_each: int = 2

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_size", "bytes_each"):
            check_count(name, getattr(self, name), least=1)

    @property
    def kv_bytes(self) -> int:
        """Of one token's keys and values, all heads."""
        return 2 * self.kv_heads * self.head_size * self.bytes_each


@dataclass(frozen=True)
class Traffic:
    """Bytes that a rank sends in a layer's forward pass per token that it holds: the mean and the most of all
    ranks.
    """

    mean: float
    most: float


def planned_traffic(shape: AttentionShape, pattern: Pattern, tokens: int, ranks: int) -> Traffic:
    """What the plan of a pattern sends, for a row of `tokens`, a multiple of `ranks`.

    The backward pass sends as much once more: gradients of what was sent. ValueError as `windows_to_cut`.
    """
    ids = torch.zeros(1, tokens, dtype=torch.long)
    plan = SequencePlan(windows_to_cut(pattern), ranks, shape.heads, shape.kv_heads, ids)
    sent = [sum(sent_bytes(plan, rank, shape)) / plan.shard_tokens for rank in range(ranks)]
    return Traffic(mean(sent), max(sent))


def sent_bytes(plan: SequencePlan, rank: int, shape: AttentionShape) -> list[int]:
    """Bytes of keys and values that a rank sends to each rank in the forward pass of one layer."""
    each = 2 * shape.head_size * shape.bytes_each
    routes = plan.routes(rank)
    return [
        sum(each * (route.group.last - route.group.first) * len(route.sent[to]) for route in routes)
        for to in range(plan.ranks)
    ]


def ring_traffic(shape: AttentionShape, ranks: int) -> Traffic:
    """Ring attention (arXiv 2310.01889, section 3): each shard's keys and values pass through all others.

    Forward alone. Its backward pass sends keys, values and their gradients around: twice this.
    """
    check_count("ranks", ranks, least=1)
    sent = float((ranks - 1) * shape.kv_bytes)
    return Traffic(sent, sent)


def ulysses_traffic(shape: AttentionShape, ranks: int) -> Traffic:
    """DeepSpeed-Ulysses (arXiv 2309.14509, section 3): queries, keys, values and outputs change from shards
    of tokens to shards of heads and back, of which a share of 1/`ranks` stays.

    Forward alone; the backward pass sends as much once more. ValueError for a number of ranks that does not
    divide that of key/value heads, which are shared out among them.
    """
    check_count("ranks", ranks, least=1)
    if shape.kv_heads % ranks:
        raise ValueError(
            f"ranks={ranks} must divide the {shape.kv_heads} key/value heads, which are shared out"
        )
    queries_and_outputs = 2 * shape.heads * shape.head_size * shape.bytes_each
    sent = (queries_and_outputs + shape.kv_bytes) * (ranks - 1) / ranks
    return Traffic(sent, sent)
