"""What a layer of a bounded cache asks of a scorer: which of its tokens matter least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sinklora.cache.rotation import Rotation


@dataclass(frozen=True)
class NewTokens:
    """A chunk of Q new tokens after `used` stored slots: L in all.

    `query` [B, H, Q, D]; `keys`, `values` [B, Hkv, L, D]; `positions` [B, Hkv, L], below 0 where there is no
    token. `counts`, `before`: new and earlier tokens, row by row; the new ones come first in their row.
    `complete`: there is a token at every position. `rotation`: what moves queries, where the policy does.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor
    used: int
    counts: list[int]
    before: list[int]
    scale: float
    complete: bool = False
    rotation: Rotation | None = None

    def rows(self, values: list[Any]) -> Tensor:
        """A number a row, [B, 1]."""
        return torch.tensor(values, device=self.query.device)[:, None]


@dataclass(frozen=True)
class NewToken:
    """One decoded token a row, which stands in its slot already.

    `seen`: how many tokens of its row came before it, a number or [B, 1, 1]; `slot`: where it stands, a
    number or [B, Hkv, 1], with a dimension of layers before where several step together.
    For scorers that need weights, `weights` [layers, B, Hkv, groups, used] in float32 or float64: its
    attention to all that is stored, itself included, in layers that step together; and, if they need values,
    its own `value` [layers, B, Hkv, 1, D] in them. Where heads keep different numbers of tokens, `weights`
    [groups, T], `slot` [heads], `value` [heads, D], of all heads of these layers.
    For all others, one layer's `values` [B, Hkv, used, D] and the token's own `value` [B, Hkv, 1, D].
    """

    seen: int | Tensor
    slot: int | Tensor
    weights: Tensor | None = None
    values: Tensor | None = None
    value: Tensor | None = None


class Scorer(Protocol):
    """The scores of one layer's tokens, by slot; a policy makes it (`CachePolicy.make_scorer`).

    `state` holds tensors whose last dimension is slots, "scores" [B, Hkv, slots] among them; the layer moves
    their columns together with keys and values, and hands them back through `state`.
    """

    state: dict[str, Tensor]

    @property
    def needs_sums(self) -> bool:
        """Whether `extend` wants the attention that each token receives in a chunk."""

    @property
    def needs_weights(self) -> bool:
        """Whether `step` wants the attention of the new token."""

    @property
    def needs_values(self) -> bool:
        """Whether `step` wants the new token's value besides its attention."""

    def query_weights(self, new: NewTokens) -> Tensor | None:
        """How much each query [B, Q] of a chunk counts in the sums; None: all count 1, padding is none."""

    def extend(self, new: NewTokens, sums: Tensor | None) -> None:
        """Take in a chunk; `sums` [B, Hkv, L]: the weighted column sums of its attention, if needed."""

    def step(self, columns: dict[str, Tensor], new: NewToken) -> None:
        """Account for one new token a row, in place; its own columns are zeros before.

        `columns`: the state, whose tensors begin with a dimension of layers where weights are needed.
        """

    def rank(self, scores: Tensor, positions: Tensor, seen: Any) -> Tensor:
        """What decides between tokens when so many have been `seen`; the lowest is evicted first."""
