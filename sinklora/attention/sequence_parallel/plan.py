"""Which tokens of the others each rank needs, when rows are cut along the sequence.

Everything follows from the windows of a pattern (`packed_windows.windows_of`): a rank needs the sinks, and of
windows that straddle its borders what its own queries see. Full attention is one window, so that its plan
gathers the keys and values of all earlier ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.packed_windows import Windows, windows_of
from sinklora.attention.pattern import Pattern
from sinklora.ranges import check_count


@dataclass(frozen=True)
class HeadGroup:
    """Key/value heads `first` to `last` (exclusive); `kinds`: whether their queries' windows are shifted.

    Two kinds for the one head that has queries of both.
    """

    first: int
    last: int
    kinds: tuple[bool, ...]

    @property
    def heads(self) -> slice:
        return slice(self.first, self.last)


@dataclass(frozen=True, eq=False)
class Route:
    """What one rank holds of a group of heads after the exchange, and how it comes there.

    Tokens are numbered through the flattened batch, `row * N + position`, and own ones through the flattened
    shard. `tokens`: those held, ascending. `own`: where in `tokens` the shard's lie. `received[r]`: where
    those from rank r go. `sent[r]`: which of the shard go to rank r, in their order there. All int64.
    """

    group: HeadGroup
    tokens: Tensor
    own: Tensor
    received: tuple[Tensor, ...]
    sent: tuple[Tensor, ...]


def windows_to_cut(pattern: Pattern) -> AttentionPattern:
    """The windows of a pattern whose rows can be cut over several processes; ValueError, with the reason, for
    any other.
    """
    windows = pattern.windows()
    kind = type(pattern).__name__
    if windows is None:
        raise ValueError(
            f"{kind} does not consist of windows, and rows can be cut over several processes for windows "
            "alone (sf, s2, short, full, ...): choose one of them, or a process"
        )
    if pattern.whole_rows_only:
        raise ValueError(
            f"{kind} moves tokens before or after attention, for which a process needs whole rows: choose "
            "windows alone (sf, s2, short, full, ...), or a process"
        )
    return windows


@dataclass(frozen=True, eq=False)
class SequencePlan:
    """Who needs what: rank r holds the tokens from `r * S` to `(r + 1) * S` of every row, S = N / `ranks`.

    `document_ids` [B, N] (int) of whole rows, as `attend` takes them; what fills a row up to a multiple of
    `ranks` is a document of its own. ValueError for what cannot be cut.
    """

    pattern: AttentionPattern
    ranks: int
    heads: int
    kv_heads: int
    document_ids: Tensor

    def __post_init__(self) -> None:
        for name in ("ranks", "heads", "kv_heads"):
            check_count(name, getattr(self, name), least=1)
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.document_ids.ndim != 2 or self.document_ids.shape[1] % self.ranks:
            raise ValueError(
                f"document_ids must be [B, N] with N a multiple of ranks={self.ranks}, got "
                f"{list(self.document_ids.shape)}: fill rows up with a document of their own"
            )

    @property
    def shard_tokens(self) -> int:
        """Tokens of a row that each rank holds."""
        return self.document_ids.shape[1] // self.ranks

    @cached_property
    def groups(self) -> tuple[HeadGroup, ...]:
        """All key/value heads in order, by the kinds of windows that their queries have."""
        ratio, first = self.heads // self.kv_heads, self.heads - self.pattern.shifted_heads(self.heads)
        before, after = first // ratio, -(-first // ratio)
        groups = (
            HeadGroup(0, before, (False,)),
            HeadGroup(before, after, (False, True)),
            HeadGroup(after, self.kv_heads, (True,)),
        )
        return tuple(group for group in groups if group.first < group.last)

    def group_of(self, kv_head: int) -> int:
        """Which of `groups` a key/value head is in."""
        return next(place for place, group in enumerate(self.groups) if kv_head < group.last)

    @cached_property
    def windows(self) -> dict[bool, Windows]:
        """The windows of whole rows, for the un-shifted and the shifted heads that there are."""
        kinds = {kind for group in self.groups for kind in group.kinds}
        return {kind: windows_of(self.pattern, kind, self.document_ids) for kind in sorted(kinds)}

    def shard_of(self, tokens: Tensor) -> Tensor:
        """The rank that holds each of `tokens`."""
        return tokens % self.document_ids.shape[1] // self.shard_tokens

    def own(self, rank: int) -> Tensor:
        """The tokens that a rank holds from the start, ascending: int64 [B*S]."""
        batch, num_tokens = self.document_ids.shape
        rows = torch.arange(batch, device=self.document_ids.device)[:, None] * num_tokens
        within = torch.arange(self.shard_tokens, device=rows.device)
        return (rows + rank * self.shard_tokens + within).flatten()

    def seen(self, rank: int, shifted: bool) -> Tensor:
        """What the queries of a rank see, and its own tokens: bool [B*N]."""
        windows, own = self.windows[shifted], self.own(rank)
        last = torch.full_like(windows.lengths, -1)
        last = last.scatter_reduce(0, windows.window[own], windows.slot[own], "amax")
        seen = windows.slot <= last[windows.window]
        counts = torch.where(last >= 0, windows.sinks, 0)
        nth = torch.arange(int(counts.sum()), device=own.device)
        nth = nth - (counts.cumsum(0) - counts).repeat_interleave(counts)
        seen[windows.document.repeat_interleave(counts) + nth] = True
        return seen

    def held(self, rank: int, group: HeadGroup) -> Tensor:
        """The tokens of which a rank holds keys and values of a group after the exchange, ascending."""
        seen = self.seen(rank, group.kinds[0])
        for kind in group.kinds[1:]:
            seen = seen | self.seen(rank, kind)
        return seen.nonzero().flatten()

    def routes(self, rank: int) -> tuple[Route, ...]:
        """What a rank sends and receives, for each group of heads."""
        return tuple(self._route(rank, group) for group in self.groups)

    def _route(self, rank: int, group: HeadGroup) -> Route:
        held = [self.held(other, group) for other in range(self.ranks)]
        tokens, own = held[rank], self.own(rank)
        origin = self.shard_of(tokens)
        places = [(origin == other).nonzero().flatten() for other in range(self.ranks)]
        nothing = places[rank][:0]
        sent = (torch.searchsorted(own, other[self.shard_of(other) == rank]) for other in held)
        return Route(
            group,
            tokens,
            places[rank],
            tuple(nothing if other == rank else place for other, place in enumerate(places)),
            tuple(nothing if other == rank else rows for other, rows in enumerate(sent)),
        )

    def local_windows(self, rank: int, shifted: bool) -> tuple[Tensor, Windows]:
        """The windows that a rank attends in, of the tokens [T] that its queries see, ascending.

        Of a window that straddles a border this is its part up to the rank's last query in it. Sinks whose
        window the rank has no query in stand in a window without sinks, which nobody asks for.
        """
        whole, tokens = self.windows[shifted], self.seen(rank, shifted).nonzero().flatten()
        kept, window, lengths = torch.unique(whole.window[tokens], return_inverse=True, return_counts=True)
        asked = torch.zeros_like(lengths, dtype=torch.bool)
        asked[window[self.shard_of(tokens) == rank]] = True
        sinks = torch.where(asked, whole.sinks[kept], 0)
        # Where a window has sinks they are all held, so that its document's first token is.
        document = torch.searchsorted(tokens, whole.document[kept]).clamp(max=len(tokens) - 1)
        return tokens, Windows(window, whole.slot[tokens], lengths, sinks, document)
