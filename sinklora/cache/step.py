"""A decoding step of several layers at once: which token each of them evicts is decided for all together.

What is evicted matters for the next token alone, so it can wait until the last layer has attended: a handful
of operators for all layers in place of a handful for each. `growing_step` is for layers with a row that has
not used up its budget, `filling_step` for such layers of constant size, `steady_step` where all rows are
full, `ragged_step` where heads hold different numbers of tokens.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sinklora.cache.ragged_attention import RaggedHeads
from sinklora.cache.scores import NewToken
from sinklora.cache.storage import TokenStorage


class Stored(NamedTuple):
    """What a decoded token attends to in a layer, itself included.

    `keys`, `values` [B, Hkv, used, D], `positions` [B, Hkv, used]. `visible` [B, 1, 1, used]: False hides a
    slot; None: none is hidden. `places` [B, 1, 1]: which of its row's kept tokens the new one is, from 0 on.
    `weights` [B, Hkv, groups, used]: where its attention is to be written, if the scorer needs that.
    `ragged`: None, or whose tokens are where, if heads keep different numbers: `keys`, `values` [T, D],
    `positions`, `visible` [T], `weights` [groups, T].
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    visible: Tensor | None
    places: Tensor
    weights: Tensor | None
    ragged: RaggedHeads | None = None


class Step(ABC):
    """Layers of one shape that have seen the same tokens; their positions and scores lie in one tensor.

    Each layer calls `begin` before it attends and `end` afterwards, one layer after the other. `slot`: where
    the new token goes, a number or [layers, B, Hkv, 1] (a dimension that is the same throughout may be 1).
    `seen`: the tokens before it, a number or [B, 1, 1].
    """

    constant: ClassVar[bool]  # whether no shape changes in it, and nothing that the host counts
    slot: int | Tensor
    seen: int | Tensor

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        # Weakly: layers hold their step, and in a circle the tensors would stay until a garbage collection.
        self._layers = [weakref.ref(layer) for layer in layers]
        self.scorer = layers[0].scorer
        self._attending = 0  # layers that have begun
        self._weights: list[Tensor] = []  # attention of the new token, by layer
        self._values: list[Tensor] = []  # its values, if they are needed
        self.stack()

    @property
    def layers(self) -> list[TokenStorage]:
        """Those that step together."""
        return [layer for held in self._layers if (layer := held()) is not None]

    @property
    def first(self) -> TokenStorage:
        """The one that tells what all have in common."""
        layer = self._layers[0]()
        assert layer is not None
        return layer

    def stack(self) -> None:
        """One tensor of all layers' columns, of which each layer has its part."""
        columns = [layer.columns() for layer in self.layers]
        self.columns = {name: _stacked([of_layer[name] for of_layer in columns]) for name in columns[0]}
        for index, layer in enumerate(self.layers):
            layer.change(lambda x: x, {name: x[index] for name, x in self.columns.items()})
            layer.step, layer.index_in_step = self, index

    def begin(self, layer: TokenStorage, key: Tensor, value: Tensor) -> Stored:
        """Put a new token a row, [B, Hkv, 1, D], into its slot; the first layer says where for all."""
        if self._attending == 0:
            self._place()
        self._attending += 1
        return self._store(layer, key, value)

    def end(self, layer: TokenStorage, stored: Stored, value: Tensor) -> None:
        """Account for the new token, whose attention stands in `stored.weights`; the last layer evicts."""
        by_weights = stored.weights is not None
        if self.scorer is not None and not by_weights:
            index = layer.index_in_step
            of_layer = {name: x[index] for name, x in self.columns.items() if name != "positions"}
            new = NewToken(self.seen, self._slot_of(index), values=stored.values, value=value)
            self.scorer.step(of_layer, new)
        elif self.scorer is not None and self.scorer.needs_values:
            self._values.append(value)
        if self._attending < len(self._layers):
            return
        self._attending = 0
        if self.scorer is not None and by_weights:
            self.scorer.step(self.columns, self._new_token())
            self._values = []
        self._evict()

    def fixed_tensors(self) -> list[Tensor]:
        """All tensors of the step that it never replaces, if those are all that it uses."""
        return []

    def report(self) -> None:
        """Bring what the host knows of the layers up to date."""
        return

    @property
    def columns_seen(self) -> int | Tensor:
        """Tokens that each row has seen, padding included; a tensor [] where the host would have to wait."""
        return self.first.counted().columns

    @property
    @abstractmethod
    def outgrown(self) -> bool:
        """Whether the layers need another kind of step."""

    @abstractmethod
    def _place(self) -> None:
        """Write the position of the new token, in all layers."""

    @abstractmethod
    def _store(self, layer: TokenStorage, key: Tensor, value: Tensor) -> Stored:
        """Write its keys and values, in one layer."""

    @abstractmethod
    def _evict(self) -> None:
        """Count it, and free a slot for the next one, in all layers."""

    def empty_weights(self, used: int) -> list[Tensor]:
        """Tensors [B, Hkv, groups, used] for the attention of a token, by layer; none if none is needed."""
        if self.scorer is None or not self.scorer.needs_weights:
            return []
        heads, scores = self.columns["positions"].shape[1:3], self.columns["scores"]
        return [scores.new_empty(*heads, layer.groups, used) for layer in self.layers]

    def _new_token(self) -> NewToken:
        """The new token in all layers."""
        value = _stacked(self._values) if self._values else None
        return NewToken(self.seen, self.slot, weights=_stacked(self._weights), value=value)

    def _slot_of(self, index: int) -> int | Tensor:
        """The slot of one layer, a number or [B, Hkv, 1]."""
        if isinstance(self.slot, int):
            return self.slot
        heads = self.columns["positions"].shape[:-1]
        return self.slot.expand(*heads, 1)[index]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of layers as one; that of a single layer is not copied."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]
