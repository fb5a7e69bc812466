"""The same batches for several processes as for one, also where the rows of an epoch do not come out even."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sinklora.train.linear_cross_entropy import IGNORED


class RowsAndBlanks(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Rows, each of them without labels as well: `rows[~index]` is row `index` with none that is counted."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= 0:
            row: dict[str, Tensor] = self.rows[index]
            return row
        blank = self.rows[~index]
        return {**blank, "labels": torch.full_like(blank["labels"], IGNORED)}


class WholeRounds:
    """The batches of one process in rounds of `at_once`, a batch for each that trains at the same time.

    Blank rows (see `RowsAndBlanks`) fill up an epoch's last batch and last round, where accelerate would give
    rows out twice. `batches`: lists of row indices, of `batch_size` each but the last one.
    """

    def __init__(self, batches: Any, at_once: int) -> None:
        self.batches, self.at_once = batches, at_once
        self.batch_size: int = batches.batch_size

    @property
    def sampler(self) -> Any:
        """Which the Trainer tells the epoch."""
        return self.batches.sampler

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self.at_once) * self.at_once

    def __iter__(self) -> Iterator[list[int]]:
        blank = 0
        for batch in self.batches:
            blank = ~batch[0]
            yield [*batch, *[blank] * (self.batch_size - len(batch))]
        for _ in range(len(self) - len(self.batches)):
            yield [blank] * self.batch_size

    def correction(self, step: int, accumulated: int) -> float:
        """What makes the mean of a step's losses that over its batches without the blank ones.

        `step` counts optimizer steps from 0, `accumulated` the rounds of a whole one.
        """
        whole = accumulated * self.at_once
        steps = math.ceil(len(self.batches) / whole)
        if (step + 1) % steps:
            return 1.0
        before = (steps - 1) * whole
        return (len(self) - before) / (len(self.batches) - before)
