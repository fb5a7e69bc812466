"""The decoding step of layers whose rows are all full, and whose heads keep as many tokens each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinklora.cache.constant_step import ConstantStep
from sinklora.cache.eviction import lowest_slot
from sinklora.cache.scores import Scorer
from sinklora.cache.slots import EMPTY, write_slot
from sinklora.cache.step import Stored
from sinklora.cache.storage import TokenStorage


class SteadyStep(ConstantStep):
    """See `Step`; every row has as many tokens as its budget, and a free slot."""

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        super().__init__(layers)
        first = self.layers[0]
        rows, (_, batch, heads, slots) = first.counted(), self.columns["positions"].shape
        self._index = torch.arange(slots, device=first.device)
        self._stored = rows.next_places()  # tokens [B, 1, 1]; the new one comes behind them
        self._visible = None if rows.agree(rows.stored) else self._reach()
        self._recent, self._protected = (rows.numbers(x) for x in rows.always_kept())
        # Keys and values flattened to [B * Hkv * slots, D], and where the slots of each head begin in them.
        self._flat = [(_flattened(layer.keys), _flattened(layer.values)) for layer in self.layers]
        self._first = torch.arange(0, batch * heads * slots, slots, device=first.device).view(batch, heads, 1)
        self._rows: Tensor | None = None  # of the new token in them [layers, B * Hkv], during a step
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
            + [*self.columns.values(), *(x for pair in self._flat for x in pair), *self._weights]
        )

    def _report_slots(self) -> None:
        write_slot(self.columns["positions"], self._slots(), EMPTY, -1)
        for index, layer in enumerate(self.layers):
            rows, heads = layer.counted(), layer.kv_heads
            layer.next_slot = rows.slots(rows.next_slots, heads) if self.scorer is None else self.slot[index]
            layer.used = max(map(sum, zip(rows.stored, rows.evicting, strict=True)))

    def _place(self) -> None:
        positions = self.columns["positions"]
        self._rows = (self.slot + self._first).flatten(1).expand(len(self.layers), -1)
        write_slot(positions, self._slots(), self.seen.expand(*positions.shape[:-1], 1), -1)

    def _store(self, layer: TokenStorage, key: Tensor, value: Tensor) -> Stored:
        assert self._rows is not None
        index, heads = layer.index_in_step, self.columns["positions"].shape[1:]
        keys, values = self._flat[index]
        for flat, new in ((keys, key), (values, value)):
            flat.index_copy_(0, self._rows[index], new.flatten(0, 2))
        return Stored(
            keys.view(*heads, -1),
            values.view(*heads, -1),
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

    def _lowest(self, scorer: Scorer) -> Tensor:
        return lowest_slot(scorer, self.columns, self.seen, self._recent, self._protected)

    def _reach(self) -> Tensor:
        """Which slots [B, 1, 1, slots] a new token sees: its own is the last one."""
        return self._index <= self._stored[..., None]

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
