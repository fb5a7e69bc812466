"""Sequence parallelism in training: the processes that hold a row together, and each one's part of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sinklora.attention.sequence_parallel.collectives import Group
from sinklora.attention.sequence_parallel.shard import SequenceShard
from sinklora.train.linear_cross_entropy import IGNORED
from sinklora.train.settings import TrainingSettings


@dataclass(frozen=True, eq=False)
class ShardedRows:
    """This process's part of a batch of rows that are cut along the sequence.

    `inputs`: what the model is called with (`input_ids` and `position_ids` [B, S], `sequence_shard`).
    `targets` [B, S]: the token after each one, also where another process holds it; -100 is not counted.
    `counted`: how many are, in whole rows.
    """

    inputs: dict[str, Any]
    targets: Tensor
    counted: int


def cut_rows(
    group: Group, input_ids: Tensor, labels: Tensor, position_ids: Tensor | None = None
) -> ShardedRows:
    """The part of this process of `group`, all of which are given the same rows [B, N].

    `labels` as models of transformers take them; `position_ids` restart at 0 where a document starts. Rows
    that the processes do not divide are filled up with tokens that nobody sees and nobody counts.
    """
    if position_ids is None:
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    shard = SequenceShard.cut((position_ids == 0).cumsum(1), group)
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    inputs = {
        "input_ids": shard.part(input_ids),
        "position_ids": shard.part(position_ids),
        "sequence_shard": shard,
    }
    return ShardedRows(inputs, shard.part(targets, fill=IGNORED), int((targets != IGNORED).sum()))


@dataclass(frozen=True)
class SequenceGroups:
    """All processes, `size` after one another for each row; this one's `group`, and which of `rows` it is."""

    size: int
    group: Group
    place: int
    rows: int

    @classmethod
    def of(cls, size: int) -> SequenceGroups:
        """Groups of `size` processes; every process calls it. Without torch.distributed there is but one."""
        if size == 1 or not dist.is_initialized():
            alone = not dist.is_initialized()
            return cls(1, None, 0 if alone else dist.get_rank(), 1 if alone else dist.get_world_size())
        rows = check_processes(size, dist.get_world_size())
        groups = [dist.new_group(list(range(row * size, (row + 1) * size))) for row in range(rows)]
        place = dist.get_rank() // size
        return cls(size, groups[place], place, rows)


def process_count() -> int:
    """How many processes torchrun has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_processes(size: int, processes: int) -> int:
    """How many rows `processes` hold at once, `size` each; ValueError where it does not come out even."""
    if processes % size:
        raise ValueError(
            f"sequence_parallel={size}: expected a multiple of {size} processes, got {processes}; start them "
            f"with torchrun --nproc_per_node={size} -m sinklora.train"
        )
    return processes // size


def accumulated_batches(spec: TrainingSettings, processes: int) -> int:
    """How many batches a step of `batch_size` rows has in each of so many processes.

    Raises ValueError where it does not come out even.
    """
    rows = check_processes(spec.sequence_parallel, processes)
    count, rest = divmod(spec.batch_size, spec.micro_batch_size * rows)
    if rest or not count:
        raise ValueError(
            f"batch_size={spec.batch_size}: expected a multiple of micro_batch_size × devices"
            f"{' / sequence_parallel' if rows < processes else ''} = {spec.micro_batch_size} × {rows}"
        )
    return count
