"""Positions inside the cache: kept tokens count 0, 1, 2, ... and new ones go on from there.

StreamingLLM, arXiv 2309.17453, section 3.2: keys are kept without positions and get them when they are read.
What turns them also moves queries, for policies that ask what a query would see from elsewhere.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Rotation(Protocol):
    """Rotary position embeddings of a model."""

    def rotated(self, x: Tensor, positions: Tensor, length: int) -> Tensor:
        """Queries or keys [B, H, N, D] without positions, put at `positions` [B|1, H|1, N] below `length`."""

    def turned(self, x: Tensor, by: Tensor, length: int) -> Tensor:
        """Queries or keys [B, H, N, D] that have positions, put `by` [B|1, H|1, N] below `length` further on.

        Rotations compose: it does not matter where they are, and a factor that scales them stays what it was.
        """


def ranks(positions: Tensor) -> Tensor:
    """The place of each position among those of its head, oldest first [B, Hkv, L]; empty slots come last."""
    last = torch.iinfo(positions.dtype).max
    order = positions.masked_fill(positions < 0, last).argsort(-1)
    counted = torch.arange(positions.shape[-1], device=positions.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, counted)
