"""The decoding step of layers with a row that is not full: the host counts, and slots are made as needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinklora.cache.eviction import next_slot
from sinklora.cache.slots import slot_rows, write_pair, write_rows, write_slot
from sinklora.cache.step import Step, Stored
from sinklora.cache.storage import TokenStorage


class GrowingStep(Step):
    """See `Step`; `slot` is a number where all heads agree."""

    constant = False

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        super().__init__(layers)
        slots = [layer.next_slot for layer in self.layers]
        tensors = [slot for slot in slots if isinstance(slot, Tensor)]
        self._hand_out(torch.stack(tensors) if tensors else slots[0])

    @property
    def outgrown(self) -> bool:
        """Whether all rows are full now."""
        return self.first.is_full()

    def _place(self) -> None:
        rows, positions = self.first.counted(), self.columns["positions"]
        self.seen = rows.numbers(rows.tokens)
        new = self.seen
        if isinstance(new, Tensor):
            new = new.int().expand(*positions.shape[:-1], 1)
        write_slot(positions, self.slot, new, -1)
        self._weights = self.empty_weights(max(rows.stored) + 1)

    def _store(self, layer: TokenStorage, key: Tensor, value: Tensor) -> Stored:
        assert layer.keys is not None and layer.values is not None and layer.positions is not None
        rows = layer.counted()
        if isinstance(self.slot, int) and layer.pair is not None:
            write_pair(layer.pair, self.slot, key, value)
        elif isinstance(self.slot, int):
            write_slot(layer.keys, self.slot, key, 2)
            write_slot(layer.values, self.slot, value, 2)
        else:
            write_rows(layer.keys, self._rows[layer.index_in_step], key)
            write_rows(layer.values, self._rows[layer.index_in_step], value)
        used = layer.used = max(rows.stored) + 1
        visible = None
        if min(rows.stored) + 1 < used:
            visible = torch.arange(used, device=key.device) <= rows.numbers(rows.stored, dims=4)
        keys, values = layer.keys[:, :, :used], layer.values[:, :, :used]
        weights = self._weights[layer.index_in_step] if self._weights else None
        return Stored(keys, values, layer.positions[..., :used], visible, rows.next_places(), weights)

    def _evict(self) -> None:
        for layer in self.layers:
            layer.counted().count_decoded()
            layer.make_room()
        if any(layer.step is not self for layer in self.layers):
            self.stack()
        self._hand_out(next_slot(self.first.counted(), self.scorer, self.columns))

    def _hand_out(self, slot: int | Tensor) -> None:
        """Tell each layer its free slot."""
        self.slot = slot
        if isinstance(slot, Tensor):
            self._rows = slot_rows(slot, self.columns["positions"].shape[-1])
        for index, layer in enumerate(self.layers):
            layer.next_slot = self._slot_of(index)
