"""Row by row: how many tokens were seen, how many are kept, and the budget. Plain numbers on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinklora.cache.policies import CachePolicy, Split


class Rows:
    """The counts of a batch; padding counts nowhere, so a padded row counts as it would alone.

    They are lists and not tensors: which slot comes next is known without waiting for the device.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.device = device
        self.columns = 0  # tokens, padding included
        self.tokens = [0] * batch  # seen
        self.stored = [0] * batch  # of them, those that are kept; where heads differ, on average
        self.splits = [Split(0, 0, 0)] * batch
        self.next_slots = [0] * batch  # where the next token goes; see `count_decoded`
        self.evicting = [False] * batch  # whether a token must leave for the last decoded one
        self.shares = [False] * batch  # whether the last tokens were a prompt or a turn, which share slots
        self.leaving = [0] * batch  # tokens that the last ones were too much
        self.limited = [False] * batch  # whether the next turn's budget counts even where it is smaller
        self.longest_attended = 0  # the most tokens that any query has seen in the cache, itself included

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: list[int]) -> None:
        """Only these rows, in this order."""
        counts = ("tokens", "stored", "splits", "next_slots", "leaving")
        for name in (*counts, "evicting", "shares", "limited"):
            values = getattr(self, name)
            setattr(self, name, [values[row] for row in rows])

    def start_turn(self, policy: CachePolicy, counts: list[int]) -> None:
        """Budgets after a prompt or turn of so many tokens; a row keeps the one it has if that is larger,
        unless it was `limited`.

        A single further token is no turn but a decoded one, which changes no budget. Where always the oldest
        leaves, a row that has evicted protects no more tokens than before: the next ones are gone, and other
        tokens would stay in their slots.
        """
        self.shares = [
            count > 1 or (count > 0 and not seen) for count, seen in zip(counts, self.tokens, strict=True)
        ]
        for row, count in enumerate(counts):
            if self.shares[row]:
                new = policy.split(self.tokens[row] + count)
                old = self.splits[row]
                split = new if self.limited[row] else max(old, new, key=lambda split: split.total)
                if self.stored[row] < self.tokens[row] and not policy.has_scores():
                    protected = min(old.protected, split.protected)
                    split = Split(protected, 0, split.total - protected)
                self.splits[row], self.limited[row] = split, False

    def count(self, counts: list[int]) -> None:
        """So many more tokens a row, of which no more stay than the budget allows."""
        self.tokens = [seen + new for seen, new in zip(self.tokens, counts, strict=True)]
        grown = [stored + new for stored, new in zip(self.stored, counts, strict=True)]
        self.longest_attended = max(self.longest_attended, *grown)
        self.stored = [min(n, split.total) for n, split in zip(grown, self.splits, strict=True)]
        self.leaving = [n - stored for n, stored in zip(grown, self.stored, strict=True)]

    def start_decoding(self) -> None:
        """The kept tokens are in the order of positions now, and the slots behind them are free."""
        self.next_slots = list(self.stored)
        self.evicting = [False] * len(self)

    def full(self) -> list[bool]:
        """Whether a row has used up its budget."""
        return [stored == split.total for stored, split in zip(self.stored, self.splits, strict=True)]

    def count_decoded(self) -> None:
        """One more token a row, written into its next slot; in a full row another one must leave.

        A row has a slot more than its budget, so that a token is written before one leaves. Where always the
        oldest leaves, the slots behind the protected ones are a ring, and this says which is next.
        """
        self.columns += 1
        self.evicting = self.full()
        ring = zip(self.next_slots, self.rings(), strict=True)
        self.next_slots = [slot + 1 if slot < end else begin for slot, (begin, end) in ring]
        self.count([1] * len(self))

    def rings(self) -> list[tuple[int, int]]:
        """The first and the last slot of each row that are filled in turns once it is full."""
        return [(split.protected, split.total) for split in self.splits]

    def always_kept(self) -> tuple[list[int], list[int]]:
        """How many of the newest and of the first tokens of each row are never evicted."""
        return [max(split.recent, 1) for split in self.splits], [split.protected for split in self.splits]

    def most(self) -> int:
        """The largest budget of a row."""
        return max(split.total for split in self.splits)

    def agree(self, values: list[Any]) -> bool:
        """Whether a number is the same in all rows."""
        return len(set(values)) == 1

    def next_places(self) -> Tensor:
        """The position of each row's next token among those that are kept: [B, 1, 1]."""
        return torch.tensor(self.stored, device=self.device)[:, None, None]

    def numbers(self, values: list[Any], dims: int = 3) -> Any:
        """A number a row: one where all agree, else a tensor [B, 1, ...] of so many dimensions."""
        if self.agree(values):
            return values[0]
        return torch.tensor(values, device=self.device).reshape(-1, *[1] * (dims - 1))

    def slots(self, places: list[int], heads: int) -> int | Tensor:
        """A slot a row: one number where all agree, which is read and written faster, else [B, Hkv, 1]."""
        number = self.numbers(places)
        return number.expand(-1, heads, 1) if isinstance(number, Tensor) else int(number)
