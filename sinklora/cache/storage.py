"""Where a layer keeps its tokens: keys, values, positions and scores, one slot for each token of a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.policies import CachePolicy
from sinklora.cache.ragged import RaggedTokens, unpack, unpacked
from sinklora.cache.rows import Rows
from sinklora.cache.scored_attention import precise
from sinklora.cache.scores import Scorer
from sinklora.cache.slots import EMPTY

if TYPE_CHECKING:
    from sinklora.cache.step import Step


class TokenStorage:
    """Keys and values [B, Hkv, slots, D], their positions [B, Hkv, slots], and the scores of one layer.

    The first `used` slots hold tokens, row by row as many as `rows.stored` says, each head its own; a free
    slot among them has the position EMPTY and zeros as scores. After a prompt the tokens are in the order of
    positions; a decoded token is written into the slot `next_slot`, which is free: a number where all heads
    agree, else [B, Hkv, 1].
    `pair`: None, or [B, Hkv, 2, slots, D], of which keys and values are the halves (see `slots.write_pair`).
    Heads that share their slots may hold different numbers of tokens (`uneven`): `ragged` holds those then,
    in place of all of these tensors; while tokens come or rows are selected, they are padded as above.
    """

    keys: Tensor | None
    values: Tensor | None
    step: Step | None  # with the layers that decode and evict together with this one
    index_in_step: int

    def __init__(self, policy: CachePolicy) -> None:
        self.policy = policy
        self.constant_size = False  # whether it has all slots of its budget from the first decoded token on
        self.forget()

    def forget(self) -> None:
        """Hold nothing; the next tokens may come in another batch."""
        self.keys = self.values = None
        self.pair: Tensor | None = None
        self.positions: Tensor | None = None
        self.scorer: Scorer | None = None
        self.rows: Rows | None = None
        self.step = None
        self.index_in_step = 0
        self.groups = 1  # queries that share a key/value head
        self.used = 0
        self.next_slot: int | Tensor = 0
        self.ragged: RaggedTokens | None = None
        self.uneven = False
        self.awaits_sharing = False  # whether it holds more than its budget, until all layers have read

    def allocate(self, key: Tensor) -> None:
        """Get ready for keys and values like these, which are the first."""
        batch, kv_heads, _, size = key.shape
        self.dtype, self.device, self.kv_heads, self.size = key.dtype, key.device, kv_heads, size
        self.rows = Rows(batch, self.device)
        self.scorer = self.new_scorer()

    def new_scorer(self) -> Scorer | None:
        """What ranks tokens for the policy, without any scores yet; None where it has none."""
        if not self.policy.has_scores():
            return None
        shape, dtype = (len(self.counted()), self.kv_heads, 0), precise(self.dtype)
        return self.policy.make_scorer(torch.empty(shape, dtype=dtype, device=self.device))

    def check_fits(self, key: Tensor) -> None:
        """ValueError where new keys do not fit the stored ones."""
        assert self.rows is not None
        if key.shape[0] != len(self.rows):
            raise ValueError(
                f"this cache holds {len(self.rows)} rows and was given {key.shape[0]}: make a new "
                "BudgetCache for another batch, or call reset()"
            )
        if (key.shape[1], key.shape[3]) != (self.kv_heads, self.size) or key.dtype != self.dtype:
            raise ValueError(
                f"this cache holds {self.kv_heads} heads of size {self.size} in {self.dtype} and was given "
                f"{key.shape[1]} of size {key.shape[3]} in {key.dtype}: it belongs to another model, make a "
                "new BudgetCache for this one"
            )

    def counted(self) -> Rows:
        """The counts of its rows, as far as the host has them; the cache is not empty."""
        assert self.rows is not None
        return self.rows

    def bring_up_to_date(self) -> None:
        """Let the host know of all tokens that were decoded."""
        if self.step is not None:
            self.step.report()

    def is_full(self) -> bool:
        """Whether every row has used up its budget, and has its free slot."""
        if self.rows is None or self.keys is None or self.values is None:
            return False
        slots = self.rows.most() + 1
        return min(self.rows.tokens) > 0 and all(self.rows.full()) and self.keys.shape[2] == slots

    def columns(self) -> dict[str, Tensor]:
        """The tensors besides keys and values; their last dimension is slots."""
        if self.ragged is not None:
            return self.ragged.columns
        assert self.positions is not None
        return {"positions": self.positions} | ({} if self.scorer is None else self.scorer.state)

    def replace(self, keys: Tensor, values: Tensor, columns: dict[str, Tensor]) -> None:
        """Hold these tensors instead, and step alone until somebody makes another step for them."""
        self.step = self.ragged = self.pair = None
        self.keys, self.values, self.positions = keys, values, columns["positions"]
        if self.scorer is not None:
            self.scorer.state = {name: x for name, x in columns.items() if name != "positions"}

    def replace_pair(self, pair: Tensor, columns: dict[str, Tensor]) -> None:
        """As `replace`, with keys and values in one tensor [B, Hkv, 2, slots, D]."""
        keys, values = pair.unbind(2)
        self.replace(keys, values, columns)
        self.pair = pair

    def change(self, made_of: Callable[[Tensor], Tensor], columns: dict[str, Tensor]) -> None:
        """As `replace`, with what is made of keys, and of values; a pair stays one."""
        if self.pair is not None:
            self.replace_pair(made_of(self.pair), columns)
        else:
            assert self.keys is not None and self.values is not None
            self.replace(made_of(self.keys), made_of(self.values), columns)

    def hold_ragged(self, tokens: RaggedTokens) -> None:
        """Hold these tokens of unequal heads instead."""
        self.step = self.keys = self.values = self.pair = self.positions = None
        self.ragged, self.uneven, self.awaits_sharing = tokens, True, False
        if self.scorer is not None:
            self.scorer.state = {}

    def packed(self) -> RaggedTokens:
        """The tokens of unequal heads; they are not padded now."""
        assert self.ragged is not None
        return self.ragged

    def pad(self) -> None:
        """Hold the tokens of unequal heads padded, until they are packed again."""
        if self.ragged is not None:
            self.replace(*unpack(self.ragged, len(self.counted())))
            self.used = self.held_positions().shape[-1]

    def held_positions(self) -> Tensor:
        """Positions [B, Hkv, slots]."""
        assert self.positions is not None
        return self.positions

    def nbytes(self) -> int:
        """Bytes of all tensors; 0 where there is none."""
        if self.ragged is not None:
            return sum(x.numel() * x.element_size() for x in self.ragged.tensors())
        if self.keys is None or self.values is None:
            return 0
        tensors = [self.keys, self.values, *self.columns().values()]
        return sum(x.numel() * x.element_size() for x in tensors)

    def kept_positions(self) -> Tensor:
        """Kept positions, ascending [B, Hkv, kept] (int32); EMPTY at the end of rows and heads with fewer."""
        if self.rows is None or (self.positions is None and self.ragged is None):
            raise ValueError("the cache is empty: give it to a model first")
        self.bring_up_to_date()
        if self.ragged is not None:
            kept = unpacked("positions", self.ragged.columns["positions"], self.ragged.slots, len(self.rows))
        else:
            kept = self.held_positions()[..., : self.used]
        last = torch.iinfo(torch.int32).max
        most = int((kept >= 0).sum(-1).max()) if self.uneven else max(self.rows.stored)
        kept = kept.masked_fill(kept == EMPTY, last).sort(-1).values[..., :most]
        return kept.masked_fill(kept == last, EMPTY)

    def select(self, indices: Tensor) -> None:
        """Only these rows, in this order."""
        if self.rows is None or (self.keys is None and self.ragged is None):
            return
        self.bring_up_to_date()
        self.pad()
        at = indices.to(self.device)
        columns = {name: x[at] for name, x in self.columns().items()}
        if isinstance(self.next_slot, Tensor):
            self.next_slot = self.next_slot[at]
        self.change(lambda x: x[at], columns)
        self.rows.select(torch.arange(len(self.rows))[indices.cpu()].tolist())

    def leave_inference_mode(self) -> None:
        """Tensors that were made in inference mode cannot be written outside of it: take copies instead."""
        if self.ragged is not None and self.ragged.keys.is_inference():
            self.hold_ragged(self.ragged.cloned())
        if self.keys is not None and self.values is not None and self.keys.is_inference():
            columns = {name: x.clone() for name, x in self.columns().items()}
            if isinstance(self.next_slot, Tensor):
                self.next_slot = self.next_slot.clone()
            self.change(torch.clone, columns)

    def with_stored(self, key: Tensor, value: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Stored tokens and new ones behind them: keys, values, positions."""
        if not self.used:
            return key.detach(), value.detach(), positions
        assert self.keys is not None and self.values is not None and self.positions is not None
        keys = torch.cat([self.keys[:, :, : self.used], key], 2)
        values = torch.cat([self.values[:, :, : self.used], value], 2)
        return keys, values, torch.cat([self.positions[..., : self.used], positions], -1)

    def slots_for(self, tokens: int) -> int:
        """Slots to make for so many tokens: one more for the next, a quarter more while the budget allows."""
        assert self.rows is not None
        most = self.rows.most()
        return min(most + 1, tokens + tokens // 4 + 16) if tokens < most else tokens + 1

    def make_room(self) -> None:
        """Free slots for one more token a row."""
        if self.keys is not None:
            needed = max(self.counted().next_slots) + 1
            if needed > self.keys.shape[2]:
                self.make_slots(self.slots_for(needed))

    def make_slots(self, slots: int) -> None:
        """As many slots in all, if they are not there yet."""
        assert self.keys is not None
        extra = slots - self.keys.shape[2]
        if extra > 0:
            columns = {name: padded(name, x, extra) for name, x in self.columns().items()}
            self.change(lambda x: F.pad(x, (0, 0, 0, extra)), columns)


def padded(name: str, column: Tensor, slots: int) -> Tensor:
    """A column with so many free slots behind it."""
    return F.pad(column, (0, slots), value=EMPTY if name == "positions" else 0)
