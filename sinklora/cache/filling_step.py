"""The decoding step of layers that were given all slots of their budget at once, and fill them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sinklora.cache.steady_step import SteadyStep
from sinklora.cache.storage import TokenStorage


class FillingStep(SteadyStep):
    """A `SteadyStep` whose rows may have free slots still: one graph before and after they are full."""

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        for layer in layers:
            layer.make_slots(layer.counted().most() + 1)
        super().__init__(layers)
        rows = self.first.counted()
        self._total = self._stored.new_tensor([split.total for split in rows.splits])[:, None, None]

    @property
    def outgrown(self) -> bool:
        """Whether all rows are full, as far as the host knows."""
        rows, new = self.first.counted(), self._uncounted or 0
        return all(n + new >= split.total for n, split in zip(rows.stored, rows.splits, strict=True))

    def fixed_tensors(self) -> list[Tensor]:
        """All that a step reads, and writes in place."""
        return [*super().fixed_tensors(), self._total]

    def _place(self) -> None:
        super()._place()
        self._visible = self._reach()

    def _evict(self) -> None:
        super()._evict()
        self._visible = None
        self._stored.copy_(torch.minimum(self._stored + 1, self._total))

    def _next_slot(self) -> Tensor:
        following = super()._next_slot()
        return (
            following if self.scorer is None else following.where(self._stored == self._total, self.slot + 1)
        )
