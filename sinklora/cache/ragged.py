"""Tokens of heads that keep different numbers of them, one head after the other, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.slots import EMPTY


@dataclass
class RaggedTokens:
    """One layer's `keys` and `values` [T, D], and `columns` [..., T]: positions and scores.

    The slots of a batch row's first key/value head come first, `slots` of them, then those of its second
    head, and so on. As in a layer whose heads are alike, a free slot has the position EMPTY and zeros as
    scores.
    """

    keys: Tensor
    values: Tensor
    columns: dict[str, Tensor]
    slots: list[int]

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [self.keys, self.values, *self.columns.values()]

    def cloned(self) -> RaggedTokens:
        """The same in tensors of its own."""
        columns = {name: x.clone() for name, x in self.columns.items()}
        return RaggedTokens(self.keys.clone(), self.values.clone(), columns, self.slots)


def pack(
    keys: Tensor,
    values: Tensor,
    columns: dict[str, Tensor],
    kept: Tensor,
    counts: Sequence[int],
    free: Sequence[int],
) -> RaggedTokens:
    """Of tokens [B, Hkv, L, D] (columns [B, Hkv, ..., L]) those that are `kept` [B, Hkv, L].

    `counts`: how many those are, head by head; `free`: slots to leave free behind them.
    """
    slots = [count + more for count, more in zip(counts, free, strict=True)]
    source = kept.flatten().nonzero().squeeze(1)
    behind = [end - sum_of for end, sum_of in zip(starts(slots), starts(counts), strict=True)]
    moved = torch.repeat_interleave(
        torch.tensor(behind, device=kept.device),
        torch.tensor(counts, device=kept.device),
        output_size=len(source),
    )
    target = torch.arange(len(source), device=kept.device) + moved
    total = sum(slots)

    def packed(x: Tensor) -> Tensor:  # [B * Hkv * L, ...] -> [T, ...]
        return x.new_zeros(total, *x.shape[1:]).index_copy_(0, target, x.index_select(0, source))

    flat = {name: packed(_slots_first(x)).movedim(0, -1).contiguous() for name, x in columns.items()}
    flat["positions"].masked_fill_(_is_free(target, total), EMPTY)
    return RaggedTokens(packed(keys.flatten(0, 2)), packed(values.flatten(0, 2)), flat, slots)


def unpack(tokens: RaggedTokens, batch: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Keys, values [B, Hkv, L, D] and columns [B, Hkv, ..., L]; L is the largest head's slots."""
    columns = {name: unpacked(name, x, tokens.slots, batch) for name, x in tokens.columns.items()}
    keys, values = (
        torch.stack(_padded_parts(x, tokens.slots)).unflatten(0, (batch, -1))
        for x in (tokens.keys, tokens.values)
    )
    return keys, values, columns


def unpacked(name: str, column: Tensor, slots: Sequence[int], batch: int) -> Tensor:
    """A column [..., T] as [B, Hkv, ..., L]."""
    fill = EMPTY if name == "positions" else 0
    parts = _padded_parts(column.movedim(-1, 0), slots, fill)
    return torch.stack(parts).unflatten(0, (batch, -1)).movedim(2, -1).contiguous()


def starts(slots: Sequence[int]) -> list[int]:
    """Where each head's slots begin."""
    return [0, *accumulate(slots)][:-1]


def _padded_parts(x: Tensor, slots: Sequence[int], fill: int = 0) -> list[Tensor]:
    """The heads of [T, ...], each as long as the longest."""
    longest = max(slots)
    behind = [0] * (2 * (x.ndim - 1))
    return [F.pad(part, (*behind, 0, longest - len(part)), value=fill) for part in x.split(list(slots))]


def _slots_first(x: Tensor) -> Tensor:
    """A column [B, Hkv, ..., L] as [B * Hkv * L, ...]."""
    return x.movedim(-1, 2).flatten(0, 2)


def _is_free(target: Tensor, total: int) -> Tensor:
    return torch.ones(total, dtype=torch.bool, device=target.device).index_fill_(0, target, False)
