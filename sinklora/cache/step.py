"""A decoding step of several layers at once: which token each of them evicts is decided for all together.

What is evicted matters for the next token alone, so it can wait until the last layer has attended: a handful
of operators for all layers in place of a handful for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sinklora.cache.eviction import next_slot
from sinklora.cache.scores import NewToken
from sinklora.cache.slots import slot_rows, write_slot
from sinklora.cache.storage import TokenStorage


class Step:
    """Layers of one shape that have seen the same tokens; their positions and scores lie in one tensor.

    Each layer calls `begin` before it attends and `end` afterwards, one layer after the other.
    """

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        self.layers = list(layers)
        self._begun = self._ended = 0
        self._columns: dict[str, Tensor] = {}
        self._slot: int | Tensor = 0
        self._weights: Tensor | None = None
        self._index = {id(layer): index for index, layer in enumerate(self.layers)}
        self._stack()

    def has(self, layer: TokenStorage) -> bool:
        """Whether the layer's columns are still those of this step: a prompt or a selection makes others."""
        return layer.positions is not None and layer.positions is self._positions.get(id(layer))

    def begin(self, layer: TokenStorage) -> None:
        """The first layer says for all where the new token stands."""
        if self._begun == 0:
            assert layer.rows is not None
            seen = layer.rows.numbers(layer.rows.tokens)
            positions = self._columns["positions"]
            new = seen if isinstance(seen, int) else seen.int().expand(*positions.shape[:-1], 1)
            write_slot(positions, self._slot, new, -1)
        self._begun += 1

    def weights_of(self, layer: TokenStorage, groups: int) -> Tensor:
        """Where a layer writes the attention of its new token: [B, Hkv, groups, used]."""
        scores = self._columns["scores"]
        if self._weights is None:
            self._weights = scores.new_empty(*scores.shape[:-1], groups, scores.shape[-1])
        return self._weights[self._index[id(layer)], ..., : layer.used]

    def end(self, layer: TokenStorage) -> None:
        """The last layer accounts and evicts for all."""
        self._ended += 1
        if self._ended < len(self.layers):
            return
        self._begun = self._ended = 0
        assert layer.rows is not None
        if self._weights is not None and layer.scorer is not None:
            seen = [tokens - 1 for tokens in layer.rows.tokens]
            new = NewToken(seen, self._slot, weights=self._weights[..., : layer.used])
            layer.scorer.step(self._columns, new)
        for member in self.layers:
            member.make_room()
        if not all(map(self.has, self.layers)):
            self._stack()
        self._slot = next_slot(layer.rows, layer.scorer, self._columns)
        self._hand_out()

    def _stack(self) -> None:
        """One tensor of all layers' columns, of which each layer has its part."""
        columns = [layer.columns() for layer in self.layers]
        self._weights = None
        self._columns = {name: _stacked([mine[name] for mine in columns]) for name in columns[0]}
        self._positions: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            assert layer.keys is not None and layer.values is not None
            mine = {name: x[index] for name, x in self._columns.items()}
            layer.replace(layer.keys, layer.values, mine)
            self._positions[id(layer)] = mine["positions"]
        slots = [layer.next_slot for layer in self.layers]
        self._slot = _stacked(slots) if isinstance(slots[0], Tensor) else slots[0]
        self._hand_out()

    def _hand_out(self) -> None:
        """Tell each layer its free slot."""
        if isinstance(self._slot, int):
            for layer in self.layers:
                layer.next_slot = self._slot
            return
        rows = slot_rows(self._slot, self._columns["positions"].shape[-1])
        for layer, slot, row in zip(self.layers, self._slot, rows, strict=True):
            layer.next_slot, layer.next_row = slot, row


def _stacked(tensors: Sequence[Any]) -> Tensor:
    """Tensors of layers as one; that of a single layer is not copied."""
    return torch.stack(list(tensors)) if len(tensors) > 1 else tensors[0][None]


def step_together(layers: Sequence[TokenStorage]) -> None:
    """Let all layers that hold tokens step together with those of their shape, device and history."""
    alike: dict[object, list[TokenStorage]] = {}
    for layer in layers:
        if layer.rows is not None and layer.positions is not None:
            rows, shape = layer.rows, layer.positions.shape
            history = (rows.tokens, rows.stored, rows.splits, rows.next_slots, type(layer.next_slot).__name__)
            alike.setdefault(str((layer.device, shape, layer.used, history)), []).append(layer)
    for members in alike.values():
        step = Step(members)
        for member in members:
            member.step = step
