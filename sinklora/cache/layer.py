"""One layer of a bounded key/value cache: attention over what is kept, scores, eviction.

The tensors have one slot for each token of the budget. A decoded token attends to the kept ones and itself;
then it takes the place of the evicted token, so nothing is copied and no shape changes.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinklora.cache.policies import CachePolicy, Split
from sinklora.cache.scored_attention import attend_and_sum, precise
from sinklora.cache.scores import NewTokens, TokenScores, make_scores
from sinklora.cache.slots import EMPTY, as_column, like, read_slot, write_slot

MARK = "sinklora_budget_layer"


def layer_of(key: Tensor) -> BudgetLayer | None:
    """The layer that `update` handed this key tensor out for; None for any other key."""
    return getattr(key, MARK, None)


class BudgetLayer:
    """Keys and values [B, Hkv, slots, D], their positions [B, Hkv, slots] and scores of one layer.

    `update` takes the new keys and values and marks them, `attend` answers the queries, accounts for them and
    evicts. Tokens are counted row by row without padding, so a padded row keeps what it would keep alone.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, policy: CachePolicy, prefill_chunk: int | None = None) -> None:
        self.policy, self.prefill_chunk = policy, prefill_chunk
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next call may have another batch size."""
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self._module: weakref.ref[nn.Module] | None = None
        self.positions: Tensor | None = None
        self.scores: TokenScores | None = None
        self.columns = self.used = 0
        self.tokens: list[int] = []  # seen, row by row, without padding
        self.stored: list[int] = []  # of them, those that are kept
        self.splits: list[Split] = []
        self.ring_starts: list[int] = []  # tokens seen when a row is full and in the order of positions
        self.awaits_attention = self.is_initialized = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate empty storage like the first keys and values."""
        batch, kv_heads, _, size = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(batch, kv_heads, 0, size)
        self.values = value_states.new_empty(batch, kv_heads, 0, value_states.shape[-1])
        self.positions = torch.empty(batch, kv_heads, 0, dtype=torch.int32, device=self.device)
        empty = key_states.new_empty(batch, kv_heads, 0, dtype=precise(self.dtype))
        self.scores = make_scores(self.policy.score, empty)
        self.tokens, self.stored, self.ring_starts = [0] * batch, [0] * batch, [0] * batch
        self.splits = [Split(0, 0, 0)] * batch
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values of new tokens, [B, Hkv, Q, D]; returns them, marked, for `attend`.

        Raises ValueError where they do not fit what is stored.
        """
        if not self.columns:
            self.lazy_initialization(key_states, value_states)
        self._check(key_states)
        self.awaits_attention = True
        setattr(key_states, MARK, self)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen, padding included: where the next token's position counts from."""
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask is asked for the new tokens alone: which of them are padding."""
        return query_length, self.columns

    def get_max_length(self) -> int:
        """No largest length: tokens are evicted, positions count on."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20

    @property
    def batch_size(self) -> int:
        """Rows of the batch; -1 before the first call."""
        return len(self.tokens) if self.is_initialized else -1

    def nbytes(self) -> int:
        """Bytes of all tensors of the layer; 0 before the first call."""
        if self.keys is None or self.values is None:
            return 0
        tensors = [self.keys, self.values, *self._columns().values()]
        return sum(x.numel() * x.element_size() for x in tensors)

    def kept_positions(self) -> Tensor:
        """Kept positions, ascending [B, Hkv, slots] (int32); EMPTY at the end of short rows."""
        if self.positions is None:
            raise ValueError("the cache is empty: give it to a model first")
        kept = self.positions[..., : self.used].long()
        kept = torch.where(kept == EMPTY, torch.iinfo(torch.long).max, kept).sort(-1).values
        return torch.where(kept == torch.iinfo(torch.long).max, EMPTY, kept).int()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order (beam search)."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        rows = torch.arange(len(self.tokens)).repeat_interleave(repeats)
        self.batch_select_indices(rows)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows, in this order."""
        if not self.is_initialized:
            return
        assert self.keys is not None and self.values is not None
        chosen = indices.to(self.device)
        self.keys, self.values = self.keys[chosen], self.values[chosen]
        self._replace({name: x[chosen] for name, x in self._columns().items()})
        rows = torch.arange(len(self.tokens))[indices.cpu()].tolist()
        self.tokens = [self.tokens[row] for row in rows]
        self.stored = [self.stored[row] for row in rows]
        self.splits = [self.splits[row] for row in rows]
        self.ring_starts = [self.ring_starts[row] for row in rows]

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible: what was evicted cannot come back. Raises ValueError."""
        raise ValueError(
            "a BudgetCache cannot be cropped, evicted tokens are gone: assisted decoding and what else rolls "
            "back need transformers' DynamicCache"
        )

    # --- attention ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, scale: float
    ) -> Tensor:
        """Attention [B, H, Q, D] of new tokens over what is kept and themselves; then scores and eviction.

        `real` [B, Q]: False is padding (zeros come out); None: there is none.
        Raises ValueError for a cache that another model filled.
        """
        self._check_module(module)
        self.columns += query.shape[2]
        if query.shape[2] == 1 and real is None and min(self.tokens) > 0:
            return self._decode(query, key, value, scale)
        if real is None:
            return self._prompt(query, key, value, [query.shape[2]] * query.shape[0], scale)
        # Padding goes to the end of its row, where causality hides it.
        order = (~real).to(torch.int8).argsort(dim=-1, stable=True)
        query, key, value = (x.gather(2, like(order[:, None, :, None], x)) for x in (query, key, value))
        output = self._prompt(query, key, value, real.sum(-1).tolist(), scale)
        output = torch.empty_like(output).scatter_(2, like(order[:, None, :, None], output), output)
        return output.masked_fill_(~real[:, None, :, None], 0.0)

    def _prompt(self, query: Tensor, key: Tensor, value: Tensor, counts: list[int], scale: float) -> Tensor:
        """Several tokens a row, `counts` of them real, at once or chunk by chunk."""
        self.splits = [self._split(row, count, query.shape[2]) for row, count in enumerate(counts)]
        step = self.prefill_chunk or query.shape[2]
        outputs = []
        for begin in range(0, query.shape[2], step):
            q, k, v = (x[:, :, begin : begin + step] for x in (query, key, value))
            outputs.append(self._extend(q, k, v, [min(max(n - begin, 0), q.shape[2]) for n in counts], scale))
        return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]

    def _split(self, row: int, count: int, width: int) -> Split:
        """A row's budget after `count` more tokens: that of a prompt or turn, unless it had a larger one."""
        before = self.tokens[row]
        if count == 0 or (width == 1 and before > 0):
            return self.splits[row]
        return max(self.splits[row], self.policy.split(before + count), key=lambda split: split.total)

    def _extend(self, query: Tensor, key: Tensor, value: Tensor, counts: list[int], scale: float) -> Tensor:
        """Attend with a chunk of new tokens, add them, keep what the budget allows."""
        assert self.keys is not None and self.values is not None and self.positions is not None
        index = torch.arange(query.shape[2], device=query.device)
        count, before = self._rows(counts), self._rows(self.tokens)
        fresh = torch.where(index < count, before + index, EMPTY).int()
        fresh = fresh.expand(*key.shape[:3])
        keys, values, positions = key.detach(), value.detach(), fresh.contiguous()
        if self.used:
            keys = torch.cat([self.keys[:, :, : self.used], key], 2)
            values = torch.cat([self.values[:, :, : self.used], value], 2)
            positions = torch.cat([self.positions[:, :, : self.used], fresh], 2)
        output = self._attend(
            NewTokens(query, keys, values, positions, self.used, counts, self.tokens, scale)
        )
        self._count(counts)
        self._keep(keys, values, positions)
        return output

    def _attend(self, new: NewTokens) -> Tensor:
        """Attention of a chunk, and its scores."""
        even = min(new.counts) == new.query.shape[2] and min(self.stored) == self.used
        sums = None
        if new.used or (self.scores is not None and self.scores.needs_sums):
            weights = None if self.scores is None else self.scores.query_weights(new)
            valid = None if even else new.positions >= 0
            output, sums = attend_and_sum(
                new.query, new.keys, new.values, new.scale, weights=weights, valid=valid
            )
        else:
            grouped = new.query.shape[1] != new.keys.shape[1]
            output = F.scaled_dot_product_attention(
                new.query, new.keys, new.values, is_causal=True, scale=new.scale, enable_gqa=grouped
            )
        if self.scores is not None:
            self.scores.extend(new, sums)
        return output

    def _keep(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Store the tokens that stay, in the order of their positions."""
        columns = {} if self.scores is None else self.scores.state
        if min(self.stored) < positions.shape[2] or self.used:
            kept, positions = self._chosen(positions)
            keys, values = (x.gather(2, like(kept[..., None], x)) for x in (keys, values))
            columns = {name: x.gather(-1, as_column(kept, x)) for name, x in columns.items()}
        # Projections hand out views; decoding over one would copy all of it at every step.
        self.keys, self.values, self.used = keys.contiguous(), values.contiguous(), positions.shape[2]
        self._replace({"positions": positions, **columns})
        rows = zip(self.tokens, self.stored, self.splits, strict=True)
        self.ring_starts = [seen + split.total - stored for seen, stored, split in rows]

    def _chosen(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Index [B, Hkv, slots] of the tokens that stay, oldest first, and their positions."""
        most = max(self.stored)
        if self.scores is None:
            rank = torch.zeros(positions.shape, device=positions.device)
        else:
            rank = self.scores.rank(self.scores.state["scores"], positions, self._rows(self.tokens))
        rank = rank.masked_fill(self._stays(positions), float("inf"))
        rank = rank.masked_fill(positions < 0, float("-inf"))
        newest_first = positions.argsort(dim=-1, descending=True)
        by_rank = rank.gather(-1, newest_first).argsort(dim=-1, descending=True, stable=True)
        kept = newest_first.gather(-1, by_rank)[..., :most]
        at = positions.gather(-1, kept)
        at = torch.where(torch.arange(most, device=at.device) < self._rows(self.stored), at, EMPTY)
        by_position = torch.where(at < 0, torch.iinfo(at.dtype).max, at).argsort(-1)
        return kept.gather(-1, by_position), at.gather(-1, by_position)

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One new token a row: attend to the kept ones and itself, then take the evicted one's place."""
        assert self.keys is not None and self.values is not None and self.positions is not None
        used, kv_heads = self.used, key.shape[1]
        grouped = (query * scale).reshape(query.shape[0], kv_heads, -1, query.shape[3])
        own = (grouped * key).sum(-1, keepdim=True)
        scores = torch.cat([grouped @ self.keys[:, :, :used].mT, own], -1)
        scores = scores.to(precise(scores.dtype))
        uneven = min(self.stored) < used
        if uneven:
            scores[..., :used].masked_fill_(self.positions[:, :, None, :used] < 0, float("-inf"))
        weights = scores.softmax(-1)
        exact = weights.to(value.dtype)
        output = exact[..., :used] @ self.values[:, :, :used]
        output.addcmul_(exact[..., used:], value)
        received = None
        if self.scores is not None and self.scores.needs_weights:
            received = weights[:, :, 0] if weights.shape[2] == 1 else weights.sum(2)
        self._take_in(key, value, received)
        return output.reshape(query.shape)

    def _take_in(self, key: Tensor, value: Tensor, received: Tensor | None) -> None:
        """Account for a new token a row, and write it into the slot of the evicted one, or a free one."""
        assert self.keys is not None and self.values is not None
        stored, used = self.stored, self.used
        full = [n == split.total for n, split in zip(stored, self.splits, strict=True)]
        place = [self._oldest_recent(row) if full[row] else n for row, n in enumerate(stored)]
        fresh: dict[str, Tensor | int] = {}
        if self.scores is not None:
            before, own = (None, None) if received is None else (received[..., :used], received[..., used:])
            self.scores.step(before, self.values[:, :, :used], value, self.tokens)
            fresh |= self.scores.fresh(own, value, self.tokens)
            if any(full):
                self._promote([slot if f else 0 for slot, f in zip(place, full, strict=True)], full)
        if not all(full):
            self._grow(max(n for n, f in zip(stored, full, strict=True) if not f) + 1)
        slot = self._slot(place)
        write_slot(self.keys, slot, key, 2)
        write_slot(self.values, slot, value, 2)
        seen = self._rows(self.tokens)
        fresh["positions"] = seen if isinstance(seen, int) else seen.int().expand(*key.shape[:2], 1)
        for name, x in self._columns().items():
            write_slot(x, slot, fresh[name], -1)
        self._count([1] * len(self.tokens))

    def _oldest_recent(self, row: int) -> int:
        """The slot of the token that stops being recent: the last slots of a full row are a ring of those."""
        recent = max(self.splits[row].recent, 1)
        return self.splits[row].total - recent + (self.tokens[row] - self.ring_starts[row]) % recent

    def _promote(self, leaving: list[int], full: list[bool]) -> None:
        """The token that stops being recent takes the slot of the lowest heavy hitter, unless it is lower.

        Of equals the oldest goes, as in a prompt; a heavy hitter is older than every recent token.
        """
        assert self.scores is not None and self.positions is not None
        assert self.keys is not None and self.values is not None
        first = min(split.protected for split in self.splits)
        ends = [split.total - max(split.recent, 1) for split in self.splits]
        if max(ends) <= first:
            return
        source, seen = self._slot(leaving), self._rows([n + 1 for n in self.tokens])
        scores, region = self.scores.state["scores"], slice(first, max(ends))
        rank = self.scores.rank(scores[..., region], self.positions[..., region], seen)
        own = self.scores.rank(read_slot(scores, source, -1), read_slot(self.positions, source, -1), seen)
        if len(set(zip(full, ends, strict=True))) > 1:
            index = torch.arange(first, max(ends), device=self.device)
            inside = (index >= self._rows([s.protected for s in self.splits])) & (index < self._rows(ends))
            rank = rank.masked_fill(~(inside & self._row_index(full).bool()), float("inf"))
        lowest = rank.amin(-1, keepdim=True)
        of_equals = self.positions[..., region].masked_fill(rank > lowest, torch.iinfo(torch.int32).max)
        victim = of_equals.argmin(-1, keepdim=True)
        target = torch.where(lowest <= own, victim + first, source)
        for x in (self.keys, self.values):
            write_slot(x, target, read_slot(x, source, 2), 2)
        for x in self._columns().values():
            write_slot(x, target, read_slot(x, source, -1), -1)

    def _stays(self, positions: Tensor) -> Tensor:
        """Protected and recent tokens; the newest one is always recent."""
        pairs = zip(self.tokens, self.splits, strict=True)
        recent_from = self._rows([seen - max(split.recent, 1) for seen, split in pairs])
        return (positions >= recent_from) | (positions < self._rows([s.protected for s in self.splits]))

    # --- bookkeeping ----------------------------------------------------------------------------------------

    def _rows(self, values: list[Any], dims: int = 3) -> Any:
        """A number a row: one where all agree, else a tensor [B, 1, ...] of so many dimensions."""
        if len(set(values)) == 1:
            return values[0]
        return torch.tensor(values, device=self.device).reshape(-1, *[1] * (dims - 1))

    def _row_index(self, values: list[Any]) -> Tensor:
        """A number a row as an index [B, Hkv, 1]."""
        assert self.positions is not None
        shape = (*self.positions.shape[:2], 1)
        number = self._rows(values)
        return (
            number.expand(shape)
            if isinstance(number, Tensor)
            else torch.full(shape, number, device=self.device)
        )

    def _slot(self, places: list[int]) -> int | Tensor:
        """A slot a row: one number where all agree, which is read and written faster, else [B, Hkv, 1]."""
        return places[0] if len(set(places)) == 1 else self._row_index(places)

    def _count(self, counts: list[int]) -> None:
        """So many more tokens a row, of which no more stay than the budget allows."""
        self.tokens = [seen + new for seen, new in zip(self.tokens, counts, strict=True)]
        rows = zip(self.stored, counts, self.splits, strict=True)
        self.stored = [min(stored + new, split.total) for stored, new, split in rows]

    def _grow(self, slots: int) -> None:
        """Room for so many slots; a quarter more than asked while the budget allows it."""
        assert self.positions is not None and self.keys is not None and self.values is not None
        self.used = max(self.used, slots)
        if slots <= self.positions.shape[2]:
            return
        most = max(split.total for split in self.splits)
        extra = min(most, slots + slots // 4 + 16) - self.positions.shape[2]
        self.keys, self.values = (F.pad(x, (0, 0, 0, extra)) for x in (self.keys, self.values))
        columns = self._columns()
        self._replace(
            {name: F.pad(x, (0, extra), value=EMPTY * (name == "positions")) for name, x in columns.items()}
        )

    def _columns(self) -> dict[str, Tensor]:
        """The tensors besides keys and values; their last dimension is slots."""
        assert self.positions is not None
        return {"positions": self.positions} | ({} if self.scores is None else self.scores.state)

    def _replace(self, columns: dict[str, Tensor]) -> None:
        self.positions = columns["positions"]
        if self.scores is not None:
            self.scores.state = {name: columns[name] for name in self.scores.state}

    def _check(self, key: Tensor) -> None:
        assert self.keys is not None
        batch, kv_heads, _, size = self.keys.shape
        if key.shape[0] != batch:
            raise ValueError(
                f"this cache holds {batch} rows and was given {key.shape[0]}: make a new BudgetCache for "
                "another batch, or call reset()"
            )
        if (key.shape[1], key.shape[3]) != (kv_heads, size) or key.dtype != self.dtype:
            raise ValueError(
                f"this cache holds {kv_heads} heads of size {size} in {self.dtype} and was given "
                f"{key.shape[1]} of size {key.shape[3]} in {key.dtype}: it belongs to another model"
            )

    def _check_module(self, module: nn.Module) -> None:
        if self._module is None:
            self._module = weakref.ref(module)
        elif self._module() is not module:
            raise ValueError("this cache was filled by another model: make a new BudgetCache for this one")
