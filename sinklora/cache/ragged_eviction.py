"""Which token leaves each of several heads that keep different numbers of them."""

from __future__ import annotations

import torch
from torch import Tensor

from sinklora.cache.ragged_attention import RaggedHeads
from sinklora.cache.ragged_attention_cpu import has_compiled_eviction, lowest_slots_on_cpu


def leaving_slots(
    rank: Tensor,
    positions: Tensor,
    heads: RaggedHeads,
    row_of_head: Tensor,
    first_recent: Tensor,
    protected: Tensor,
) -> Tensor:
    """The slot of each head [heads] whose token leaves: of those that may, the oldest of the lowest rank.

    `rank`, `positions` [T]; `row_of_head` [heads]: the batch row of each. In a row, tokens at positions from
    `first_recent` [B] on stay, and those below `protected` [B]; where all stay, the oldest is named. What is
    not a number is below all other ranks.
    """
    if heads.many and has_compiled_eviction(rank):
        recent, before = first_recent.int(), protected.int()
        return lowest_slots_on_cpu(rank, positions, heads.slots, row_of_head, recent, before)
    return _leaving_slots(rank, positions, heads, row_of_head, first_recent, protected)


def _leaving_slots(
    rank: Tensor,
    positions: Tensor,
    heads: RaggedHeads,
    row_of_head: Tensor,
    first_recent: Tensor,
    protected: Tensor,
) -> Tensor:
    rank = rank.nan_to_num(float("-inf"), posinf=torch.finfo(rank.dtype).max)  # below what always stays
    recent, before = (_of_slots(x, heads, row_of_head) for x in (first_recent, protected))
    rank = rank.masked_fill_((positions >= recent) | (positions < before), float("inf"))
    last = torch.iinfo(torch.int32).max
    oldest = positions.masked_fill(rank > lowest_of_heads(rank, heads)[heads.of_slot], last)
    leaves = oldest == lowest_of_heads(oldest, heads)[heads.of_slot]
    index = torch.arange(len(rank), device=rank.device)
    return lowest_of_heads(index.where(leaves, len(index)), heads)


def lowest_of_heads(x: Tensor, heads: RaggedHeads) -> Tensor:
    """The lowest number of each head [heads], of numbers by slot [T]; each head has a slot."""
    return x.new_empty(len(heads.slots)).scatter_reduce_(0, heads.of_slot, x, "amin", include_self=False)


def _of_slots(x: Tensor, heads: RaggedHeads, row_of_head: Tensor) -> Tensor:
    """Numbers of rows [B] by slot [T]; as they are where there is one row."""
    return x if len(x) == 1 else x[row_of_head][heads.of_slot]
