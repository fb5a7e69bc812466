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
        self.ring_starts: list[int] = []  # tokens seen when slots were last in the order of positions
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
        self.tokens, self.ring_starts = [0] * batch, [0] * batch
        self.splits = [Split(0, 0, 0)] * batch
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
        index = torch.arange(query.shape[2], device=query.device)
        count, before = self._rows(counts), self._rows(self.tokens)
        fresh = torch.where(index < count, before + index, EMPTY).int()
        fresh = fresh.expand(*key.shape[:3])
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
            weights = (
                None if score is None or (even and score.decay == 1) else _query_weights(score, index, count)
            )
            if weights is not None:
                weights = weights.expand(query.shape[0], 1, -1)[:, 0]
            output, sums = attend_and_sum(query, keys, values, scale, weights=weights, valid=valid)
            if score is not None:
                scores = self._accumulated(sums, counts, score)
            if score is not None and score.window:
                history = self._remembered(query, keys, positions, counts, scale)
                scores = history.sum(2)
        self.tokens = [seen + new for seen, new in zip(self.tokens, counts, strict=True)]
        self._keep(keys, values, positions, scores, history)
        return output

    def _accumulated(self, sums: Tensor, counts: list[int], score: Score) -> Tensor:
        assert self.scores is not None
        if score.decay < 1:
            faded = self._rows([score.decay**n for n in counts])
            sums[..., : self.used] += self.scores[..., : self.used] * faded
        else:
            sums[..., : self.used] += self.scores[..., : self.used]
        return sums

    def _remembered(
        self,
        query: Tensor,
        keys: Tensor,
        positions: Tensor,
        counts: list[int],
        scale: float,
    ) -> Tensor:
        """The attention of the last queries one by one, [B, Hkv, window, L]; query t is in row t % window."""
        assert self.history is not None
        window, width = self.history.shape[2], query.shape[2]
        history = F.pad(self.history[..., : self.used], (0, width))
        last = min(window, width)
        # Below 0 where a row has fewer new tokens. [B, last]
        chosen = torch.tensor(counts, device=query.device)[:, None] - last
        chosen = chosen + torch.arange(last, device=query.device)
        before = torch.tensor(self.tokens, device=query.device)[:, None]
        real, rows = chosen >= 0, chosen.clamp(min=0)
        picked = query.gather(2, _like(rows[:, None, :, None], query[:, :, :last]))
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
        if min(self._stored()) < positions.shape[2] or self.used:
            rank = torch.zeros(positions.shape, device=positions.device) if scores is None else scores
            if self.policy.score is not None and self.policy.score.average:
                rank = rank / (self._rows(self.tokens) - positions).clamp(min=1)
            rank = rank.masked_fill(self._stays(positions), float("inf"))
            rank = rank.masked_fill(positions < 0, float("-inf"))
            newest_first = positions.argsort(dim=-1, descending=True)
            by_rank = rank.gather(-1, newest_first).argsort(dim=-1, descending=True, stable=True)
            kept = newest_first.gather(-1, by_rank)[..., :most]
            at = positions.gather(-1, kept)
            stored = self._rows(self._stored())
            at = torch.where(torch.arange(most, device=at.device) < stored, at, EMPTY)
            by_position = torch.where(at < 0, torch.iinfo(at.dtype).max, at).argsort(-1)
            kept, positions = kept.gather(-1, by_position), at.gather(-1, by_position)
            keys, values = (x.gather(2, _like(kept[..., None], x)) for x in (keys, values))
            scores = None if scores is None else scores.gather(-1, kept)
            history = None if history is None else history.gather(-1, _like(kept[:, :, None], history))
        self.keys, self.values, self.positions = keys, values, positions
        self.scores, self.history, self.used = scores, history, positions.shape[2]
        self.ring_starts = [
            max(seen, split.total) for seen, split in zip(self.tokens, self.splits, strict=True)
        ]

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One new token a row: attend to the kept ones and itself, then take the evicted one's place."""
        assert self.keys is not None and self.values is not None and self.positions is not None
        used, kv_heads = self.used, key.shape[1]
        grouped = (query * scale).reshape(query.shape[0], kv_heads, -1, query.shape[3])
        own = (grouped * key).sum(-1, keepdim=True)
        scores = torch.cat([grouped @ self.keys[:, :, :used].mT, own], -1)
        scores = scores.to(precise(scores.dtype))
        uneven = min(self._stored()) < used
        if uneven:
            scores[..., :used].masked_fill_(self.positions[:, :, None, :used] < 0, float("-inf"))
        weights = scores.softmax(-1)
        exact = weights.to(value.dtype)
        output = exact[..., :used] @ self.values[:, :, :used]
        output.addcmul_(exact[..., used:], value)
        received = None
        if self.scores is not None:
            received = weights[:, :, 0] if weights.shape[2] == 1 else weights.sum(2)
        self._take_in(key, value, received)
        return output.reshape(query.shape)

    def _take_in(self, key: Tensor, value: Tensor, received: Tensor | None) -> None:
        """Write a token a row into the slot of the evicted token, or into a free one."""
        score, used = self.policy.score, self.used
        turn = None
        if score is not None and score.window:
            turn = self._row_index([n % score.window for n in self.tokens])[..., None]
        if received is not None and score is not None:
            self._account(received[..., :used], score, turn)
        stored = self._stored()
        full = [n == split.total for n, split in zip(stored, self.splits, strict=True)]
        place = [self._oldest_recent(row) if full[row] else n for row, n in enumerate(stored)]
        if self.scores is not None and any(full):
            self._promote([slot if f else 0 for slot, f in zip(place, full, strict=True)], full)
        if not all(full):
            self._grow(max(n for n, f in zip(stored, full, strict=True) if not f) + 1)
        self.tokens = [n + 1 for n in self.tokens]
        slot = self._row_index(place)
        assert self.keys is not None and self.values is not None and self.positions is not None
        self.keys.scatter_(2, _like(slot[..., None], key), key)
        self.values.scatter_(2, _like(slot[..., None], value), value)
        self.positions.scatter_(2, slot, self._row_index([n - 1 for n in self.tokens]).int())
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

    def _oldest_recent(self, row: int) -> int:
        """The slot of the token that stops being recent: the last slots of a full row are a ring of those."""
        recent = max(self.splits[row].recent, 1)
        return self.splits[row].total - recent + (self.tokens[row] - self.ring_starts[row]) % recent

    def _promote(self, leaving: list[int], full: list[bool]) -> None:
        """The token that stops being recent takes the slot of the lowest heavy hitter, unless it is lower.

        Of equals the heavy hitter goes, and of heavy hitters the one in the first slot.
        """
        assert self.scores is not None and self.positions is not None
        first = min(split.protected for split in self.splits)
        ends = [split.total - max(split.recent, 1) for split in self.splits]
        if max(ends) <= first:
            return
        source = self._row_index(leaving)
        rank = self._rank(self.scores[..., first : max(ends)], slice(first, max(ends)))
        own = self._rank(self.scores.gather(2, source), source)
        if len(set(zip(full, ends, strict=True))) > 1:
            index = torch.arange(first, max(ends), device=self.device)
            inside = (index >= self._rows([s.protected for s in self.splits])) & (index < self._rows(ends))
            rank = rank.masked_fill(~(inside & self._row_index(full).bool()), float("inf"))
        lowest, victim = rank.min(-1, keepdim=True)
        target = torch.where(lowest <= own, victim + first, source)
        for name, x in self._tensors().items():
            dim = 3 if name == "history" else 2
            shape = x.narrow(dim, 0, 1)
            old, new = (_like(_beside(index, name), shape) for index in (source, target))
            x.scatter_(dim, new, x.gather(dim, old))

    def _rank(self, scores: Tensor, slots: slice | Tensor) -> Tensor:
        """What heavy hitters are compared by: their scores, or the average over the queries they met."""
        assert self.positions is not None
        if self.policy.score is None or not self.policy.score.average:
            return scores
        at = self.positions[..., slots] if isinstance(slots, slice) else self.positions.gather(2, slots)
        return scores / (self._rows(self.tokens) + 1 - at).clamp(min=1)

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


def _query_weights(score: Score, index: Tensor, count: Any) -> Tensor:
    """How much each query [.., Q] counts when the last of its row has been seen; padding counts nothing."""
    age = count - 1 - index
    return torch.where(age >= 0, score.decay ** age.clamp(min=0).float(), 0.0)


def _beside(index: Tensor, name: str) -> Tensor:
    """An index [B, Hkv, 1] of slots with the dimensions of one of a layer's tensors."""
    if name in ("keys", "values"):
        return index[..., None]
    return index[:, :, None] if name == "history" else index
