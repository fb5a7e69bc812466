"""A decoding step of several layers at once: which token each of them evicts is decided for all together.

What is evicted matters for the next token alone, so it can wait until the last layer has attended: a handful
of operators for all layers in place of a handful for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinklora.cache.eviction import next_slot
from sinklora.cache.slots import write_slot
from sinklora.cache.storage import TokenStorage


class Step:
    """Layers of one shape that have seen the same tokens; their positions and scores lie in one tensor.

    Each layer calls `begin` before it attends and `end` afterwards, one layer after the other.
    """

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        self.layers = list(layers)
        self._begun = self._ended = 0
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

    def end(self, layer: TokenStorage) -> None:
        """The last layer evicts for all."""
        self._ended += 1
        if self._ended < len(self.layers):
            return
        self._begun = self._ended = 0
        assert layer.rows is not None and layer.positions is not None
        for member in self.layers:
            member.make_room()
        if not all(map(self.has, self.layers)):
            self._stack()
        self._slot = next_slot(layer.rows, layer.scorer, self._columns)
        self._hand_out()

    def _stack(self) -> None:
        """One tensor of all layers' columns, of which each layer has its part."""
        columns = [layer.columns() for layer in self.layers]
        first, slot = columns[0], self.layers[0].next_slot
        alone = len(columns) == 1
        self._columns = {
            name: x[None] if alone else torch.stack([mine[name] for mine in columns])
            for name, x in first.items()
        }
        if isinstance(slot, Tensor):
            slot = torch.stack([layer.next_slot for layer in self.layers])  # type: ignore[misc]
        self._slot = slot
        self._positions: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            assert layer.keys is not None and layer.values is not None
            mine = {name: x[index] for name, x in self._columns.items()}
            layer.replace(layer.keys, layer.values, mine)
            self._positions[id(layer)] = mine["positions"]

    def _hand_out(self) -> None:
        """Tell each layer its free slot."""
        for index, layer in enumerate(self.layers):
            layer.next_slot = self._slot if isinstance(self._slot, int) else self._slot[index]


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
