"""A decoding step in which no shape changes and nothing that the host counts: the device alone counts.

No tensor takes the place of another either: `torch.compile` makes one graph of it, which serves every step,
and CUDA graphs can replay it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sinklora.cache.step import Step
from sinklora.cache.storage import TokenStorage


class ConstantStep(Step):
    """See `Step`; `seen` [B, 1, 1] (int32) and `slot` count on the device.

    The host counts along while it runs the step itself; where a compiled graph does, it asks when it needs to
    know (`report`).
    """

    constant = True
    slot: Tensor
    seen: Tensor

    def __init__(self, layers: Sequence[TokenStorage]) -> None:
        super().__init__(layers)
        rows, device = self.first.counted(), self.first.device
        self.seen = torch.tensor(rows.tokens, dtype=torch.int32, device=device)[:, None, None]
        self._padding = self.seen.new_tensor(rows.columns - rows.tokens[0])  # of the first row
        self._uncounted: int | None = 0  # tokens decoded since the last report; None: the host does not know

    @property
    def columns_seen(self) -> int | Tensor:
        """See `Step`; a tensor while a graph is compiled, and from then on until a report."""
        if torch.compiler.is_compiling() or self._uncounted is None:
            return self.seen[0, 0, 0] + self._padding
        return self.first.counted().columns + self._uncounted

    def report(self) -> None:
        """Count on the host what was decoded, waiting for the device if need be."""
        steps = int(self.columns_seen) - self.first.counted().columns
        self._uncounted = 0
        if steps:
            for layer in self.layers:
                for _ in range(steps):
                    layer.counted().count_decoded()
            self._report_slots()

    def _count(self) -> None:
        """One more token a row."""
        self.seen.add_(1)
        if torch.compiler.is_compiling():
            self._uncounted = None
        elif self._uncounted is not None:
            self._uncounted += 1

    @abstractmethod
    def _report_slots(self) -> None:
        """Let layers know which slots are free."""
