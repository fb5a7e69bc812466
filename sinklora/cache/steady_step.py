"""The decoding step of layers whose rows are all full, and whose heads keep as many tokens each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinklora.cache.constant_step import ConstantStep
from sinklora.cache.eviction import lowest_slot
from sinklora.cache.scores import Scorer
from sinklora.cache.slots import EMPTY, write_pair, write_slot
from sinklora.cache.step import Stored
from sinklora.cache.storage import TokenStorage


class SteadyStep(ConstantStep):
    """See `Step`; every row has as many tokens as its budget, and a free slot."""

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        super().__init__(layers)
        first = self.first
        rows, (_, batch, heads, slots) = first.counted(), self.columns["positions"].shape
        self._index = torch.arange(slots, device=first.device)
        self._stored = rows.next_places()  # tokens [B, 1, 1]; the new one comes behind them
        self._visible = None if rows.agree(rows.stored) else self._reach()
        self._recent, self._protected = (rows.numbers(x) for x in rows.always_kept())
        # Keys and values flattened to [rows, D], and where the slots of each head begin in them.
        self._paired = all(layer.pair is not None for layer in self.layers)
        self._flat = [_flattened(layer, self._paired) for layer in self.layers]
        begins = torch.arange(batch * heads, device=first.device) * (2 * slots if self._paired else slots)
        self._first = begins.view(batch, heads, 1)
        self._rows: Tensor | None = None  # of the new token in them [layers, B * Hkv], during a step
        self._number: int | None = None  # its slot, where the host knows it and it is that of all heads
        self._weights = self.empty_weights(slots)
        if self.scorer is None:
            self.slot = torch.tensor(rows.next_slots, device=first.device)[None, :, None, None]
        else:
            self.slot = torch.stack([_by_head(layer.next_slot, layer.positions) for layer in self.layers])
        # Where always the oldest leaves, the slots behind the protected ones are a ring.
        begin, end = (torch.tensor(x, device=first.device)[:, None] for x in zip(*rows.rings(), strict=True))
        self._following = torch.where(self._index < end, self._index + 1, begin)[None, :, None]

    @property
    def outgrown(self) -> bool:
        """Never: full rows stay full."""
        return False

    def fixed_tensors(self) -> list[Tensor]:
        """All that a step reads, and writes in place."""
        own = [self.slot, self.seen, self._index, self._stored, self._padding, self._first, self._following]
        numbers = [x for x in (self._visible, self._recent, self._protected) if isinstance(x, Tensor)]
        return (
            own
            + numbers
            + [*self.columns.values(), *(x for flat in self._flat for x in flat), *self._weights]
        )

    def _report_slots(self) -> None:
        write_slot(self.columns["positions"], self._slots(), EMPTY, -1)
        for index, layer in enumerate(self.layers):
            rows, heads = layer.counted(), layer.kv_heads
            layer.next_slot = rows.slots(rows.next_slots, heads) if self.scorer is None else self.slot[index]
            layer.used = max(map(sum, zip(rows.stored, rows.evicting, strict=True)))

    def _place(self) -> None:
        positions = self.columns["positions"]
        self._number = self._slot_on_host()
        if self._number is None:
            self._rows = (self.slot + self._first).flatten(1).expand(len(self._layers), -1)
        write_slot(positions, self._slots(), self.seen.expand(*positions.shape[:-1], 1), -1)

    def _store(self, layer: TokenStorage, key: Tensor, value: Tensor) -> Stored:
        index, (batch, heads, slots) = layer.index_in_step, self.columns["positions"].shape[1:]
        flat = self._flat[index]
        if self._paired:
            keys, values = flat[0].view(batch, heads, 2, slots, -1).unbind(2)
            flat = [flat[0], flat[0][slots:]]
        else:
            keys, values = (x.view(batch, heads, slots, -1) for x in flat)
        if self._number is not None:
            assert layer.pair is not None
            write_pair(layer.pair, self._number, key, value)
        else:
            assert self._rows is not None
            for x, new in zip(flat, (key, value), strict=True):
                x.index_copy_(0, self._rows[index], new.flatten(0, 2))
        return Stored(
            keys,
            values,
            self.columns["positions"][index],
            self._visible,
            self._stored,
            self._weights[index] if self._weights else None,
        )

    def _evict(self) -> None:
        self._rows = None
        self._count()
        self.slot.copy_(self._next_slot())
        if self.scorer is not None:
            for name, x in self.columns.items():
                if name != "positions":  # no one looks at that one before the next token has it
                    write_slot(x, self.slot, 0, -1)

    def _next_slot(self) -> Tensor:
        """The slot that is free from now on, shaped like `slot`."""
        return self._following.gather(-1, self.slot) if self.scorer is None else self._lowest(self.scorer)

    def _slot_on_host(self) -> int | None:
        """The slot of the new token in all layers and heads; None where it differs, or the host must wait."""
        rows, new = self.first.counted(), self._uncounted
        if torch.compiler.is_compiling() or not self._paired or self.scorer is not None or new is None:
            return None
        slot, (begin, end) = rows.next_slots[0] + new, rows.rings()[0]
        if not rows.agree(list(zip(rows.next_slots, rows.rings(), strict=True))):
            return None
        return slot if slot <= end else begin + (slot - begin) % (end + 1 - begin)

    def _lowest(self, scorer: Scorer) -> Tensor:
        return lowest_slot(scorer, self.columns, self.seen, self._recent, self._protected)

    def _reach(self) -> Tensor:
        """Which slots [B, 1, 1, slots] a new token sees: its own is the last one."""
        return self._index <= self._stored[..., None]

    def _slots(self) -> Tensor:
        """The free slots of all heads [layers, B, Hkv, 1]."""
        return self.slot.expand(*self.columns["positions"].shape[:-1], 1)


def _flattened(layer: TokenStorage, paired: bool) -> list[Tensor]:
    """Keys and values [B * Hkv * slots, D] each, or a pair [B * Hkv * 2 * slots, D], sharing memory."""
    tensors = [layer.pair] if paired else [layer.keys, layer.values]
    return [x.view(-1, x.shape[-1]) for x in tensors if x is not None]


def _by_head(slot: int | Tensor, positions: Tensor | None) -> Tensor:
    """A slot for each head [B, Hkv, 1]."""
    assert positions is not None
    if isinstance(slot, int):
        return torch.full_like(positions[..., :1], slot, dtype=torch.long)
    return slot
