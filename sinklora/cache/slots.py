"""Slots of a bounded cache: the last dimension but one of keys and values, the last one of all else."""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY = -1  # the position of a slot that holds no token


def write_slot(x: Tensor, slot: int | Tensor, new: Tensor | int, dim: int) -> None:
    """Put `new` into one slot along a dimension (2: keys and values, -1: columns), in place.

    `slot`: a number, or one for each head [..., B, Hkv, 1].
    """
    if isinstance(slot, int):
        place = x.narrow(dim, slot, 1)
        place.fill_(new) if isinstance(new, int) else place.copy_(new)
    elif isinstance(new, int):
        x.scatter_(dim, as_column(slot, x), new)
    else:
        x.scatter_(dim, as_column(slot, x) if dim == -1 else like(slot[..., None], new), new)


def write_pair(pair: Tensor, slot: int, key: Tensor, value: Tensor) -> None:
    """Put a token's key and value [B, Hkv, 1, D] into a slot of [B, Hkv, 2, slots, D], in place.

    One operator writes both: on a card, one row is as slow as their number.
    """
    torch.stack([key.squeeze(2), value.squeeze(2)], 2, out=pair[:, :, :, slot])


def as_column(index: Tensor, x: Tensor) -> Tensor:
    """An index [..., B, Hkv, n] of slots for a tensor whose last dimension is slots."""
    return index if x.ndim == index.ndim else index.unsqueeze(-2).expand(*x.shape[:-1], -1)


def like(index: Tensor, x: Tensor) -> Tensor:
    """An index expanded to x where its size is 1."""
    return index.expand(
        [have if have != 1 else want for have, want in zip(index.shape, x.shape, strict=True)]
    )


def write_rows(x: Tensor, rows: Tensor, new: Tensor) -> None:
    """Put `new` [B, Hkv, 1, D] into slots of keys or values, in place; `rows` [B * Hkv]: see `slot_rows`."""
    x.flatten(0, 2).index_copy_(0, rows, new.flatten(0, 2))


def slot_rows(slot: Tensor, slots: int) -> Tensor:
    """Slots [layers, B, Hkv, 1] as rows [layers, B * Hkv] of keys flattened to [B * Hkv * slots, D]."""
    heads = slot.shape[1] * slot.shape[2]
    first = torch.arange(0, heads * slots, slots, device=slot.device)
    return slot.reshape(-1, heads) + first
