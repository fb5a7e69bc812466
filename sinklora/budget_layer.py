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
from transformers.cache_utils import CacheLayerMixin

from sinklora.cache_policies import CachePolicy, Score, Split
from sinklora.scored_attention import attend_and_sum, attention_rows, precise

EMPTY = -1  # the position of a slot that holds no token
MARK = "sinklora_budget_layer"


def layer_of(key: Tensor) -> BudgetLayer | None:
    """The layer that `update` handed this key tensor out for; None for any other key."""
    return getattr(key, MARK, None)


class BudgetLayer(CacheLayerMixin):
    """Keys and values [B, Hkv, slots, D], their positions [B, Hkv, slots] and scores of one layer.

    `update` takes the new keys and values and marks them, `attend` answers the queries, accounts for them and
    evicts. Tokens are counted row by row without padding, so a padded row keeps what it would keep alone.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, policy: CachePolicy, prefill_chunk: int | None = None) -> None:
        super().__init__()
        self.policy, self.prefill_chunk = policy, prefill_chunk
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next call may have another batch size."""
        self.keys = self.values = None
        self._module: weakref.ref[nn.Module] | None = None
        self.positions: Tensor | None = None
        self.scores: Tensor | None = None
        self.history: Tensor | None = None
        self.columns = self.used = 0
        self.tokens: list[int] = []  # seen, row by row, without padding
        self.splits: list[Split] = []
        self.awaits_attention = self.is_initialized = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate empty storage like the first keys and values."""
        batch, kv_heads, _, size = key_states.shape
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(batch, kv_heads, 0, size)
        self.values = value_states.new_empty(batch, kv_heads, 0, value_states.shape[-1])
        self.positions = torch.empty(batch, kv_heads, 0, dtype=torch.int32, device=self.device)
        if self.policy.score is not None:
            self.scores = key_states.new_empty(batch, kv_heads, 0, dtype=precise(self.dtype))
            if self.policy.score.window:
                self.history = self.scores.new_empty(batch, kv_heads, self.policy.score.window, 0)
        self.tokens, self.splits = [0] * batch, [Split(0, 0, 0)] * batch
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values of new tokens, [B, Hkv, Q, D]; returns them, marked, for `attend`.

        Raises ValueError where they do not fit what is stored.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._check(key_states)
        self.columns += key_states.shape[2]
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
        """Bytes of all tensors of the layer."""
        return sum(x.numel() * x.element_size() for x in self._tensors().values())

    def kept_positions(self) -> Tensor:
        """Kept positions, ascending [B, Hkv, slots] (int32); EMPTY at the end of short rows."""
        assert self.positions is not None
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
        for name, x in self._tensors().items():
            setattr(self, name, x[indices.to(x.device)])
        rows = torch.arange(len(self.tokens))[indices.cpu()].tolist()
        self.tokens = [self.tokens[row] for row in rows]
        self.splits = [self.splits[row] for row in rows]

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
        self.awaits_attention = False
        self._check_module(module)
        if query.shape[2] == 1 and self.columns > 1 and real is None:
            return self._decode(query, key, value, scale)
        if real is None:
            return self._prompt(query, key, value, [query.shape[2]] * query.shape[0], scale)
        # Padding goes to the end of its row, where causality hides it.
        order = (~real).to(torch.int8).argsort(dim=-1, stable=True)
        query, key, value = (x.gather(2, _like(order[:, None, :, None], x)) for x in (query, key, value))
        output = self._prompt(query, key, value, real.sum(-1).tolist(), scale)
        output = torch.empty_like(output).scatter_(2, _like(order[:, None, :, None], output), output)
        return output.masked_fill_(~real[:, None, :, None], 0.0)

    def _prompt(self, query: Tensor, key: Tensor, value: Tensor, counts: list[int], scale: float) -> Tensor:
        """Several tokens a row, `counts` of them real, at once or chunk by chunk."""
        seen = [before + count for before, count in zip(self.tokens, counts, strict=True)]
        asked = [self.policy.split(count) for count in seen]
        self.splits = [max(pair, key=lambda s: s.total) for pair in zip(self.splits, asked, strict=True)]
        step = self.prefill_chunk or query.shape[2]
        outputs = []
        for begin in range(0, query.shape[2], step):
            q, k, v = (x[:, :, begin : begin + step] for x in (query, key, value))
            outputs.append(self._extend(q, k, v, [min(max(n - begin, 0), q.shape[2]) for n in counts], scale))
        return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]

    def _extend(self, query: Tensor, key: Tensor, value: Tensor, counts: list[int], scale: float) -> Tensor:
        """Attend with a chunk of new tokens, add them, keep what the budget allows."""
        assert self.keys is not None and self.values is not None and self.positions is not None
        count, before = self._rows(counts), self._rows(self.tokens)
        index = torch.arange(query.shape[2], device=query.device)
        fresh = torch.where(index < count, before + index, EMPTY).int()
        fresh = fresh[:, None].expand(-1, key.shape[1], -1)
        keys = torch.cat([self.keys[:, :, : self.used], key], 2)
        values = torch.cat([self.values[:, :, : self.used], value], 2)
        positions = torch.cat([self.positions[:, :, : self.used], fresh], 2)
        even = min(counts) == query.shape[2] and min(self._stored()) == self.used
        valid = None if even else positions >= 0
        score = self.policy.score
        scores = history = None
        if score is None and not self.used:
            grouped = query.shape[1] != key.shape[1]
            output = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
            )
        else:
            weights = None if score is None else _query_weights(score, index, count, even)
            output, sums = attend_and_sum(query, keys, values, scale, weights=weights, valid=valid)
            if score is not None:
                scores = self._accumulated(sums, counts, score)
            if score is not None and score.window:
                history = self._remembered(query, keys, positions, index, count, before, scale)
                scores = history.sum(2)
        self.tokens = [seen + new for seen, new in zip(self.tokens, counts, strict=True)]
        self._keep(keys, values, positions, scores, history)
        return output

    def _accumulated(self, sums: Tensor, counts: list[int], score: Score) -> Tensor:
        assert self.scores is not None
        if score.decay < 1:
            faded = self._rows([score.decay**n for n in counts])[:, None]
            sums[..., : self.used] += self.scores[..., : self.used] * faded
        else:
            sums[..., : self.used] += self.scores[..., : self.used]
        return sums

    def _remembered(
        self,
        query: Tensor,
        keys: Tensor,
        positions: Tensor,
        index: Tensor,
        count: Tensor,
        before: Tensor,
        scale: float,
    ) -> Tensor:
        """The attention of the last queries one by one, [B, Hkv, window, L]; query t is in row t % window."""
        assert self.history is not None
        window, width = self.history.shape[2], index.numel()
        history = F.pad(self.history[..., : self.used], (0, width))
        last = min(window, width)
        chosen = count - last + index[:last]  # [B, last], below 0 where a row has fewer new tokens
        real = chosen >= 0
        rows = chosen.clamp(min=0)
        picked = query.gather(2, rows[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3]))
        reach = (before + rows)[:, None, :, None]
        valid = (positions[:, :, None] >= 0) & (positions[:, :, None] <= reach)
        weights = attention_rows(picked, keys, scale, valid)
        # Counted on below 0, a missing query has the row of an older one: no two share a row.
        place = _like(((before + chosen) % window)[:, None, :, None], weights)
        old = history.gather(2, place)
        history.scatter_(2, place, torch.where(real[:, None, :, None], weights, old))
        return history

    def _keep(
        self, keys: Tensor, values: Tensor, positions: Tensor, scores: Tensor | None, history: Tensor | None
    ) -> None:
        """Store the tokens that stay, in the order of their positions."""
        most = max(self._stored())
        if min(self._stored()) < positions.shape[2]:
            rank = self._rank(positions, scores)
            newest_first = positions.argsort(-1, descending=True)
            by_rank = rank.gather(-1, newest_first).argsort(dim=-1, descending=True, stable=True)
            kept = newest_first.gather(-1, by_rank)[..., :most]
            at = positions.gather(-1, kept)
            stored = self._rows(self._stored())[:, None]
            at = torch.where(torch.arange(most, device=at.device) < stored, at, EMPTY)
            by_position = torch.where(at < 0, torch.iinfo(at.dtype).max, at).argsort(-1)
            kept, positions = kept.gather(-1, by_position), at.gather(-1, by_position)
            keys, values = (x.gather(2, _like(kept[..., None], x)) for x in (keys, values))
            scores = None if scores is None else scores.gather(-1, kept)
            history = None if history is None else history.gather(-1, _like(kept[:, :, None], history))
        self.keys, self.values, self.positions = keys, values, positions
        self.scores, self.history, self.used = scores, history, positions.shape[2]

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One new token a row: attend to the kept ones and itself, then take the evicted one's place."""
        assert self.keys is not None and self.values is not None and self.positions is not None
        used, kv_heads = self.used, key.shape[1]
        grouped = (query * scale).reshape(query.shape[0], kv_heads, -1, query.shape[3])
        scores = torch.cat([grouped @ self.keys[:, :, :used].mT, grouped @ key.mT], -1)
        scores = scores.to(precise(scores.dtype))
        uneven = min(self._stored()) < used
        if uneven:
            scores[..., :used].masked_fill_(self.positions[:, :, None, :used] < 0, float("-inf"))
        weights = scores.softmax(-1)
        exact = weights.to(value.dtype)
        output = exact[..., :used] @ self.values[:, :, :used]
        output.addcmul_(exact[..., used:], value)
        received = None if self.scores is None else weights.sum(2)
        self._take_in(key, value, received)
        return output.reshape(query.shape)

    def _take_in(self, key: Tensor, value: Tensor, received: Tensor | None) -> None:
        """Write a token a row into the slot of the evicted token, or into a free one."""
        score, used = self.policy.score, self.used
        turn = None if score is None else self._rows(self.tokens)[:, :, None, None] % max(score.window, 1)
        if received is not None and score is not None:
            self._account(received[..., :used], score, turn)
        full = [stored == split.total for stored, split in zip(self._stored(), self.splits, strict=True)]
        free = self._stored()
        self.tokens = [n + 1 for n in self.tokens]
        victim = self._victim() if any(full) else None
        if not all(full):
            self._grow(max(slot for slot, no in zip(free, full, strict=True) if not no) + 1)
        slot = self._slots(free, full, victim)
        assert self.keys is not None and self.values is not None and self.positions is not None
        self.keys.scatter_(2, _like(slot[..., None], key), key)
        self.values.scatter_(2, _like(slot[..., None], value), value)
        now = self._rows(self.tokens)[:, :, None].int() - 1
        self.positions.scatter_(2, slot, now.expand_as(slot))
        if received is not None and self.scores is not None:
            self.scores.scatter_(2, slot, received[..., used:])
        if received is not None and self.history is not None and turn is not None:
            column = received.new_zeros(*slot.shape[:2], self.history.shape[2], 1)
            column.scatter_(2, turn.expand(-1, slot.shape[1], -1, -1), received[..., used:, None])
            self.history.scatter_(3, slot[:, :, None].expand_as(column), column)

    def _account(self, received: Tensor, score: Score, turn: Tensor | None) -> None:
        assert self.scores is not None
        mine = self.scores[..., : self.used]
        if self.history is not None and turn is not None:
            past = self.history[..., : self.used]
            past.scatter_(2, _like(turn, received[:, :, None]), received[:, :, None])
            mine.copy_(past.sum(2))
            return
        if score.decay < 1:
            mine.mul_(score.decay)
        mine.add_(received)

    def _slots(self, free: list[int], full: list[bool], victim: Tensor | None) -> Tensor:
        if victim is not None and all(full):
            return victim
        assert self.positions is not None
        slot = self._rows(free)[:, :, None].expand(-1, self.positions.shape[1], 1)
        return slot if victim is None else torch.where(self._rows(full)[:, :, None].bool(), victim, slot)

    def _victim(self) -> Tensor:
        """The slot [B, Hkv, 1] of the lowest-scoring token that may go; of equals the oldest."""
        assert self.positions is not None
        positions = self.positions[..., : self.used]
        last = torch.iinfo(positions.dtype).max
        if self.scores is None:
            old = torch.where(self._stays(positions) | (positions < 0), last, positions)
            return old.argmin(-1, keepdim=True)
        rank = self._rank(positions, self.scores[..., : self.used])
        rank.masked_fill_(positions < 0, float("inf"))
        lowest = rank == rank.amin(-1, keepdim=True)
        return torch.where(lowest, positions, last).argmin(-1, keepdim=True)

    def _rank(self, positions: Tensor, scores: Tensor | None) -> Tensor:
        """What is evicted last ranks highest: inf for tokens that always stay, -inf for empty slots."""
        if scores is None:
            rank = torch.zeros(positions.shape, device=positions.device)
        elif self.policy.score is not None and self.policy.score.average:
            rank = scores / (self._rows(self.tokens)[:, :, None] - positions).clamp(min=1)
        else:
            rank = scores
        rank = torch.where(self._stays(positions), float("inf"), rank)
        return rank.masked_fill_(positions < 0, float("-inf"))

    def _stays(self, positions: Tensor) -> Tensor:
        """Protected and recent tokens; the newest one is always recent."""
        pairs = zip(self.tokens, self.splits, strict=True)
        recent_from = self._rows([seen - max(split.recent, 1) for seen, split in pairs])
        protected = self._rows([split.protected for split in self.splits])
        return (positions >= recent_from[..., None]) | (positions < protected[..., None])

    # --- bookkeeping ----------------------------------------------------------------------------------------

    def _rows(self, values: list[Any]) -> Tensor:
        """A number a row as a tensor [B, 1]; where rows agree, nothing is copied to the device."""
        if len(set(values)) == 1:
            return torch.full((1, 1), values[0], device=self.device).expand(len(values), 1)
        return torch.tensor(values, device=self.device)[:, None]

    def _stored(self) -> list[int]:
        """Tokens in store, row by row."""
        return [min(seen, split.total) for seen, split in zip(self.tokens, self.splits, strict=True)]

    def _grow(self, slots: int) -> None:
        """Room for so many slots; a quarter more than asked while the budget allows it."""
        assert self.positions is not None
        self.used = max(self.used, slots)
        if slots <= self.positions.shape[2]:
            return
        most = max(split.total for split in self.splits)
        extra = min(most, slots + slots // 4 + 16) - self.positions.shape[2]
        for name, x in self._tensors().items():
            pad = (0, 0, 0, extra) if name in ("keys", "values") else (0, extra)
            setattr(self, name, F.pad(x, pad, value=EMPTY if name == "positions" else 0))

    def _tensors(self) -> dict[str, Tensor]:
        names = ("keys", "values", "positions", "scores", "history")
        return {name: x for name in names if (x := getattr(self, name)) is not None}

    def _check(self, key: Tensor) -> None:
        assert self.keys is not None
        batch, kv_heads, _, size = self.keys.shape
        if key.shape[0] != batch:
            raise ValueError(
                f"this cache holds {batch} rows and was given {key.shape[0]}: make a new BudgetCache for "
                "another batch, or call reset()"
            )
        if (key.shape[1], key.shape[3]) != (kv_heads, size) or key.dtype != self.keys.dtype:
            raise ValueError(
                f"this cache holds {kv_heads} heads of size {size} in {self.keys.dtype} and was given "
                f"{key.shape[1]} of size {key.shape[3]} in {key.dtype}: it belongs to another model"
            )

    def _check_module(self, module: nn.Module) -> None:
        if self._module is None:
            self._module = weakref.ref(module)
        elif self._module() is not module:
            raise ValueError("this cache was filled by another model: make a new BudgetCache for this one")


def _like(index: Tensor, x: Tensor) -> Tensor:
    """An index expanded to x where its size is 1."""
    return index.expand(
        [have if have != 1 else want for have, want in zip(index.shape, x.shape, strict=True)]
    )


def _query_weights(score: Score, index: Tensor, count: Tensor, even: bool) -> Tensor | None:
    """How much each query [B, Q] counts when the last of its row has been seen; padding counts nothing."""
    if score.decay == 1 and even:
        return None
    age = count - 1 - index
    weights = score.decay ** age.clamp(min=0).float()
    return torch.where(age >= 0, weights, 0.0)
