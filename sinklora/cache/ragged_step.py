"""The decoding step of layers whose heads keep different numbers of tokens: each head keeps its number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinklora.cache.constant_step import ConstantStep
from sinklora.cache.ragged import starts
from sinklora.cache.ragged_attention import RaggedHeads
from sinklora.cache.ragged_attention_cpu import SLOTS_WORTH_COMPILING
from sinklora.cache.ragged_eviction import leaving_slots, lowest_of_heads
from sinklora.cache.scores import NewToken
from sinklora.cache.slots import EMPTY, write_slot
from sinklora.cache.step import Stored
from sinklora.cache.storage import TokenStorage


class RaggedStep(ConstantStep):
    """See `Step`; columns are [..., T], the slots of all heads of all layers one after the other.

    `slot` [layers * B * Hkv]: the free slot of each head in them. A row that has not used up its budget has
    all of its slots already, and fills them.
    """

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        super().__init__(layers)
        first, rows = self.first, self.first.counted()
        device, heads = first.device, len(rows) * first.kv_heads
        slots = [n for layer in self.layers for n in layer.packed().slots]
        sizes = torch.tensor(slots, device=device)
        many = sum(slots) >= SLOTS_WORTH_COMPILING
        of_slot = torch.repeat_interleave(sizes, output_size=sum(slots))
        self._heads = RaggedHeads(slots, of_slot, many)  # of all layers
        row = torch.arange(len(rows), device=device).repeat_interleave(first.kv_heads)
        self._row_of_head = row.repeat(len(self._layers))
        self._row = self._row_of_head[of_slot]  # of each slot
        base = torch.tensor(self._begins, device=device).repeat_interleave(heads)
        self._base = base  # where each head's layer begins
        free = torch.arange(sum(slots), device=device).where(self.columns["positions"] == EMPTY, sum(slots))
        self.slot = lowest_of_heads(free, self._heads)
        self._recent, self._protected = (torch.tensor(x, device=device) for x in rows.always_kept())
        self._stored, self._total = (
            torch.tensor(x, device=device) for x in (rows.stored, [split.total for split in rows.splits])
        )
        self._fills = not all(rows.full())
        self._local: Tensor | None = None  # the free slots [layers, B * Hkv] in their layers, during a step
        # A scorer is given attention and values of all heads here, not what is stored.
        assert self.scorer is not None and (self.scorer.needs_weights or not self.scorer.needs_values)
        self._of_layers = [
            RaggedHeads(
                layer.packed().slots,
                of_slot[begin : begin + sum(layer.packed().slots)] - heads * index,
                many,
            )
            for index, (begin, layer) in enumerate(zip(self._begins, self.layers, strict=True))
        ]
        scores = self.columns["scores"]
        self._weights = [scores.new_empty(first.groups, len(its.of_slot)) for its in self._of_layers]

    def stack(self) -> None:
        """One tensor of all layers' columns, of which each layer has its part."""
        held = [layer.packed() for layer in self.layers]
        lengths = [sum(tokens.slots) for tokens in held]
        self._begins = starts(lengths)
        self.columns = {
            name: torch.cat([tokens.columns[name] for tokens in held], -1) for name in held[0].columns
        }
        for index, (layer, tokens, begin) in enumerate(zip(self.layers, held, self._begins, strict=True)):
            tokens.columns = {
                name: x[..., begin : begin + lengths[index]] for name, x in self.columns.items()
            }
            layer.step, layer.index_in_step = self, index

    @property
    def outgrown(self) -> bool:
        """Whether no row has slots to fill any more, as far as the host knows."""
        rows, new = self.first.counted(), self._uncounted or 0
        return self._fills and all(
            n + new >= split.total for n, split in zip(rows.stored, rows.splits, strict=True)
        )

    def fixed_tensors(self) -> list[Tensor]:
        """All that a step reads, and writes in place."""
        own = [self.slot, self.seen, self._heads.of_slot, self._row_of_head, self._row, self._base]
        counts = [self._recent, self._protected, self._stored, self._total, self._padding, *self._weights]
        heads = [its.of_slot for its in self._of_layers]
        tokens = [x for layer in self.layers for x in (layer.packed().keys, layer.packed().values)]
        return [*own, *counts, *heads, *tokens, *self.columns.values()]

    def _report_slots(self) -> None:
        write_slot(self.columns["positions"], self.slot, EMPTY, -1)

    def _place(self) -> None:
        self._local = (self.slot - self._base).view(len(self._layers), -1)
        self.columns["positions"].index_copy_(0, self.slot, self.seen.flatten()[self._row_of_head])

    def _store(self, layer: TokenStorage, key: Tensor, value: Tensor) -> Stored:
        assert self._local is not None
        index, tokens = layer.index_in_step, layer.packed()
        for flat, new in ((tokens.keys, key), (tokens.values, value)):
            flat.index_copy_(0, self._local[index], new.flatten(0, 2))
        positions = tokens.columns["positions"]
        return Stored(
            tokens.keys,
            tokens.values,
            positions,
            positions >= 0 if self._fills else None,
            self.seen,
            self._weights[index],
            self._of_layers[index],
        )

    def _new_token(self) -> NewToken:
        value = torch.cat([x.flatten(0, 2) for x in self._values]) if self._values else None
        return NewToken(self.seen, self.slot, weights=torch.cat(self._weights, -1), value=value)

    def _evict(self) -> None:
        self._local = None
        self._count()
        full = (self._stored == self._total)[self._row_of_head]
        self.slot.copy_(self._lowest().where(full, self.slot + 1) if self._fills else self._lowest())
        self._stored.copy_(torch.minimum(self._stored + 1, self._total))
        for name, x in self.columns.items():
            if name != "positions":  # no one looks at that one before the next token has it
                write_slot(x, self.slot, 0, -1)

    def _lowest(self) -> Tensor:
        """The slot of each head whose token leaves."""
        assert self.scorer is not None
        positions, seen = self.columns["positions"], self.seen.flatten()
        seen_of_slot = seen if len(seen) == 1 else seen[self._row]
        rank = self.scorer.rank(self.columns["scores"], positions, seen_of_slot)
        return leaving_slots(
            rank, positions, self._heads, self._row_of_head, seen - self._recent, self._protected
        )
