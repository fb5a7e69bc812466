"""One process's part of rows that are cut along the sequence over the processes of a group."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor

from sinklora.attention.packed_windows import Rows, Windows, padded_rows
from sinklora.attention.pattern import Pattern
from sinklora.attention.sequence_parallel.collectives import Group
from sinklora.attention.sequence_parallel.plan import Route, SequencePlan, windows_to_cut


@dataclass(frozen=True, eq=False)
class LocalWindows:
    """What a rank attends in, of one kind of windows.

    `select` [T]: where the tokens of the windows lie among those held of each group of heads; `own`: where
    the shard's lie among these T. `rows` and `batches` as `padded_rows` gives them.
    """

    windows: Windows
    select: dict[int, Tensor]
    own: Tensor
    rows: Rows
    batches: list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class ShardLayout:
    """A plan as one rank carries it out: made once for a batch, used by every layer."""

    plan: SequencePlan
    rank: int

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        return self.plan.routes(self.rank)

    @cached_property
    def local(self) -> dict[bool, LocalWindows]:
        return {shifted: self._local(shifted) for shifted in self.plan.windows}

    def _local(self, shifted: bool) -> LocalWindows:
        tokens, windows = self.plan.local_windows(self.rank, shifted)
        select = {
            place: torch.searchsorted(route.tokens, tokens)
            for place, route in enumerate(self.routes)
            if shifted in route.group.kinds
        }
        own = torch.searchsorted(tokens, self.plan.own(self.rank))
        return LocalWindows(windows, select, own, *padded_rows(windows))


@dataclass(frozen=True, eq=False)
class SequenceShard:
    """This process's equal part of every row of a batch, and the processes that hold the others.

    `document_ids` [B, N] (int): of whole rows, the same in all processes of `group` (None: all there are),
    runs of equal ids being documents. N is a multiple of their number: `SequenceShard.cut` fills rows up.
    Pass it to a model as `sequence_shard=`, with the tokens and positions that `part` takes of whole rows.
    """

    document_ids: Tensor
    group: Group = None
    _layouts: dict[tuple[Pattern, int, int], ShardLayout] = field(default_factory=dict, repr=False)

    @classmethod
    def cut(cls, document_ids: Tensor, group: Group = None) -> SequenceShard:
        """The shard of rows of any length: they are filled up with a document of its own id, -1.

        Raises ValueError for ids below 0, which would be taken for filling.
        """
        if int(document_ids.min()) < 0:
            raise ValueError(f"document_ids: has {int(document_ids.min())}; number documents from 0 on")
        missing = -document_ids.shape[1] % dist.get_world_size(group)
        return cls(torch.nn.functional.pad(document_ids, (0, missing), value=-1), group)

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def ranks(self) -> int:
        return dist.get_world_size(self.group)

    def part(self, whole: Tensor, fill: int = 0) -> Tensor:
        """This process's part [B, S, ...] of `whole` [B, at most N, ...], which is filled up with `fill`."""
        size = self.document_ids.shape[1] // self.ranks
        part = whole[:, self.rank * size : (self.rank + 1) * size]
        padding = [0, 0] * (part.ndim - 2) + [0, size - part.shape[1]]
        return torch.nn.functional.pad(part, padding, value=fill)

    def layout(self, pattern: Pattern, heads: int, kv_heads: int) -> ShardLayout:
        """Who needs what for this pattern; ValueError for one whose rows cannot be cut (`windows_to_cut`)."""
        key = (pattern, heads, kv_heads)
        if key not in self._layouts:
            plan = SequencePlan(windows_to_cut(pattern), self.ranks, heads, kv_heads, self.document_ids)
            self._layouts[key] = ShardLayout(plan, self.rank)
        return self._layouts[key]
