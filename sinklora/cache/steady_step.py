"""The decoding step of layers whose rows are all full: of constant size, and the device alone counts.

Nothing in it depends on numbers of the host that change, no shape changes, and no tensor takes the place of
another: `torch.compile` makes one graph of it, which serves every step, and CUDA graphs can replay it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinklora.cache.eviction import lowest_slot
from sinklora.cache.slots import EMPTY, write_slot
from sinklora.cache.step import Step, Stored
from sinklora.cache.storage import TokenStorage


class SteadyStep(Step):
    """See `Step`; every row has as many tokens as its budget, and a free slot.

    `seen` [B, 1, 1] (int32) and `slot` count on the device. The host counts along while it runs the step
    itself; where a compiled graph does, it asks when it needs to know (`report`).
    """

    steady = True
    outgrown = False
    slot: Tensor
    seen: Tensor

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        super().__init__(layers)
        first = self.layers[0]
        rows, (_, batch, heads, slots) = first.counted(), self.columns["positions"].shape
        index = torch.arange(slots, device=first.device)
        last = rows.numbers(rows.stored, dims=4)
        self._visible = index <= last if isinstance(last, Tensor) else None
        self._places = rows.next_places()
        self._recent = rows.numbers([max(split.recent, 1) for split in rows.splits])
        self._protected = rows.numbers([split.protected for split in rows.splits])
        self.seen = torch.tensor(rows.tokens, dtype=torch.int32, device=first.device)[:, None, None]
        self._padding = self.seen.new_tensor(rows.columns - rows.tokens[0])  # of the first row
        self._uncounted: int | None = 0  # tokens decoded since the last report; None: the host does not know
        # Keys and values flattened to [B * Hkv * slots, D], and where the slots of each head begin in them.
        self._flat = [(_flattened(layer.keys), _flattened(layer.values)) for layer in self.layers]
        self._first = torch.arange(0, batch * heads * slots, slots, device=first.device).view(batch, heads, 1)
        self._weights = self.empty_weights(slots)
        self._following: Tensor | None = None
        if self.scorer is None:
            # Always the oldest leaves: the slots behind the protected ones are a ring.
            self.slot = torch.tensor(rows.next_slots, device=first.device)[None, :, None, None]
            begin, end = (torch.tensor(x, device=first.device)[:, None] for x in zip(*rows.rings(), strict=True))
            self._following = torch.where(index < end, index + 1, begin)[None, :, None]
        else:
            slots_by_layer = [_by_head(layer.next_slot, layer.positions) for layer in self.layers]
            self.slot = torch.stack(slots_by_layer)

    def fixed_tensors(self) -> list[Tensor]:
        """All that a step reads, and writes in place."""
        fixed = [self._padding, self._visible, self._places, self._recent, self._protected, self._following, self._first]
        stored = [x for pair in self._flat for x in pair]
        own = [self.slot, self.seen, *self.columns.values(), *stored, *self._weights]
        return own + [x for x in fixed if isinstance(x, Tensor)]

    @property
    def columns_seen(self) -> int | Tensor:
        """See `Step`; a tensor while a graph is compiled, and from then on until a report."""
        if torch.compiler.is_compiling() or self._uncounted is None:
            return self.seen[0, 0, 0] + self._padding
        return self.layers[0].counted().columns + self._uncounted

    def report(self) -> None:
        """Count on the host what was decoded, waiting for the device if need be."""
        steps = int(self.columns_seen) - self.layers[0].counted().columns
        self._uncounted = 0
        if not steps:
            return
        write_slot(self.columns["positions"], self._slots(), EMPTY, -1)
        for index, layer in enumerate(self.layers):
            rows = layer.counted()
            rows.count_in_full_rows(steps)
            ring = self.scorer is None
            layer.next_slot = rows.slots(rows.next_slots, layer.kv_heads) if ring else self.slot[index]
            layer.used = self.columns["positions"].shape[-1]

    def _place(self) -> None:
        positions = self.columns["positions"]
        self._rows = (self.slot + self._first).flatten(1).expand(len(self.layers), -1)
        write_slot(positions, self._slots(), self.seen.expand(*positions.shape[:-1], 1), -1)

    def _store(self, layer: TokenStorage, key: Tensor, value: Tensor) -> Stored:
        index = layer.index_in_step
        shape, rows = self.columns["positions"].shape[1:], self._rows[index]
        stored = []
        for flat, new in zip(self._flat[index], (key, value), strict=True):
            flat.index_copy_(0, rows, new.flatten(0, 2))
            stored.append(flat.view(*shape, -1))
        keys, values = stored
        weights = self._weights[index] if self._weights else None
        return Stored(
            keys, values, self.columns["positions"][index], self._visible, self._places, weights
        )

    def _evict(self) -> None:
        self.seen.add_(1)
        if self._following is not None:
            self.slot.copy_(self._following.gather(-1, self.slot))
        elif self.scorer is not None:
            self.slot.copy_(
                lowest_slot(self.scorer, self.columns, self.seen, self._recent, self._protected)
            )
            for name, x in self.columns.items():
                if name != "positions":  # what stands there is not looked at before the next token does
                    write_slot(x, self.slot, 0, -1)
        if torch.compiler.is_compiling():
            self._uncounted = None
        elif self._uncounted is not None:
            self._uncounted += 1

    def _slots(self) -> Tensor:
        """The free slots of all heads [layers, B, Hkv, 1]."""
        return self.slot.expand(*self.columns["positions"].shape[:-1], 1)


def _flattened(x: Tensor | None) -> Tensor:
    """[B, Hkv, slots, D] as [B * Hkv * slots, D], sharing memory."""
    assert x is not None
    return x.view(-1, x.shape[-1])


def _by_head(slot: int | Tensor, positions: Tensor | None) -> Tensor:
    """A slot for each head [B, Hkv, 1]."""
    assert positions is not None
    if isinstance(slot, int):
        return torch.full_like(positions[..., :1], slot, dtype=torch.long)
    return slot
