"""One layer of a bounded key/value cache: attention over what is kept, for a prompt and for a decoded token.

The tensors have one slot for each token of the budget and a free one. A decoded token is written into that
and attends to all; then the slot of the evicted token is the free one: nothing is moved, no shape changes.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinklora.cache.eviction import keep_chosen
from sinklora.cache.policies import CachePolicy
from sinklora.cache.rotation import Rotation, ranks
from sinklora.cache.scored_attention import attend_and_sum, attend_once
from sinklora.cache.scores import NewToken, NewTokens
from sinklora.cache.slots import EMPTY, like, write_rows, write_slot
from sinklora.cache.step import Step
from sinklora.cache.storage import TokenStorage

MARK = "sinklora_budget_layer"


def layer_of(key: Tensor) -> BudgetLayer | None:
    """The layer that `update` handed this key tensor out for; None for any other key."""
    return getattr(key, MARK, None)


class BudgetLayer(TokenStorage):
    """What one layer keeps, and attention over it.

    `update` takes the new keys and values and marks them, `attend` answers the queries, accounts for them and
    evicts. Tokens are counted row by row without padding, so a padded row keeps what it would keep alone.
    With a `rotation`, queries and keys come without positions, and get those inside the cache.
    """

    is_sliding = False
    is_croppable = False

    def __init__(
        self, policy: CachePolicy, prefill_chunk: int | None = None, rotation: Rotation | None = None
    ) -> None:
        super().__init__(policy)
        self.prefill_chunk, self.rotation = prefill_chunk, rotation
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next call may have another batch size."""
        self.forget()
        self._module: weakref.ref[nn.Module] | None = None
        self.columns_seen = 0  # tokens, padding included
        self.awaits_attention = self.is_initialized = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Get ready for keys and values like the first."""
        self.allocate(key_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take the keys and values of new tokens, [B, Hkv, Q, D]; returns them, marked, for `attend`.

        Raises ValueError where they do not fit what is stored.
        """
        if not self.columns_seen:
            self.lazy_initialization(key_states, value_states)
        self.check_fits(key_states)
        self.awaits_attention = True
        setattr(key_states, MARK, self)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen, padding included: where the next token's position counts from."""
        return self.columns_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask is asked for the new tokens alone: which of them are padding."""
        return query_length, self.columns_seen

    def get_max_length(self) -> int:
        """No largest length: tokens are evicted, positions count on."""
        return -1

    get_max_cache_shape = get_max_length  # its name before transformers 5.20

    @property
    def batch_size(self) -> int:
        """Rows of the batch; -1 before the first call."""
        return -1 if self.rows is None else len(self.rows)

    @property
    def longest_reach(self) -> int:
        """The most positions that any query has looked over: in the text, or inside the cache."""
        if self.rows is None:
            return 0
        return max(self.rows.tokens) if self.rotation is None else self.rows.longest_attended

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows in another order (beam search)."""
        self.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        if self.rows is not None:
            self.select(torch.arange(len(self.rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows, in this order."""
        self.select(indices)

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

        `real` [B, Q]: False is padding, wherever in its row it stands (zeros come out); None: there is none.
        Raises ValueError for a cache that another model filled.
        """
        assert self.rows is not None
        self._check_module(module)
        self.columns_seen += query.shape[2]
        if query.shape[2] == 1 and real is None and min(self.rows.tokens) > 0:
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
        assert self.rows is not None
        self.rows.start_turn(self.policy, counts)
        step = self.prefill_chunk or query.shape[2]
        outputs = []
        for begin in range(0, query.shape[2], step):
            q, k, v = (x[:, :, begin : begin + step] for x in (query, key, value))
            outputs.append(self._chunk(q, k, v, [min(max(n - begin, 0), q.shape[2]) for n in counts], scale))
        return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]

    def _chunk(self, query: Tensor, key: Tensor, value: Tensor, counts: list[int], scale: float) -> Tensor:
        """Attend with a chunk of new tokens, add them, keep what the budget allows."""
        assert self.rows is not None
        rows, count = self.rows, query.shape[2]
        ordered = counts == [count] * len(rows) and rows.stored == rows.next_slots == [self.used] * len(rows)
        keys, values, positions = self.with_stored(key, value, self._new_positions(counts, key.shape[:3]))
        placed = keys
        if self.rotation is not None:
            length = max(rows.stored) + count
            places = rows.next_places() + torch.arange(count, device=query.device)
            query = self.rotation.rotated(query, places, length)
            placed = self.rotation.rotated(keys, self._places(positions), self.used + count)
        output = self._attend_and_score(
            NewTokens(query, placed, values, positions, self.used, counts, rows.tokens, scale)
        )
        rows.count(counts)
        keep_chosen(self, keys, values, positions, ordered=ordered)
        return output

    def _new_positions(self, counts: list[int], shape: torch.Size) -> Tensor:
        """Where new tokens [B, Hkv, Q], `counts` of them real, stand in their rows; EMPTY for padding."""
        assert self.rows is not None
        before, width = self.rows.numbers(self.rows.tokens), shape[2]
        if counts == [width] * len(counts) and isinstance(before, int):
            index = torch.arange(before, before + width, dtype=torch.int32, device=self.device)
            return index.expand(shape)
        index = torch.arange(width, device=self.device)
        return torch.where(index < self.rows.numbers(counts), before + index, EMPTY).int().expand(shape)

    def _attend_and_score(self, new: NewTokens) -> Tensor:
        """Attention of a chunk, and its scores."""
        assert self.rows is not None
        # Padding stands behind the real tokens of a whole prompt, where causality hides it.
        even = not new.used or (min(new.counts) == new.query.shape[2] and min(self.rows.stored) == self.used)
        sums = None
        if new.used or (self.scorer is not None and self.scorer.needs_sums):
            weights = None if self.scorer is None else self.scorer.query_weights(new)
            valid = None if even else new.positions >= 0
            output, sums = attend_and_sum(
                new.query, new.keys, new.values, new.scale, weights=weights, valid=valid
            )
        else:
            grouped = new.query.shape[1] != new.keys.shape[1]
            output = F.scaled_dot_product_attention(
                new.query, new.keys, new.values, is_causal=True, scale=new.scale, enable_gqa=grouped
            )
        if self.scorer is not None:
            self.scorer.extend(new, sums)
        return output

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One new token a row: put it into the free slot, attend to all that is there, then free another."""
        assert self.keys is not None and self.values is not None and self.positions is not None
        assert self.rows is not None
        rows, step = self.rows, self._step()
        step.begin(self)
        if isinstance(self.next_slot, int):
            write_slot(self.keys, self.next_slot, key, 2)
            write_slot(self.values, self.next_slot, value, 2)
        else:
            write_rows(self.keys, self.next_row, key)
            write_rows(self.values, self.next_row, value)
        used = self.used = max(rows.stored) + 1
        keys, values = self.keys[:, :, :used], self.values[:, :, :used]
        if self.rotation is not None:
            query = self.rotation.rotated(query, rows.next_places(), used)
            keys = self.rotation.rotated(keys, self._places(self.positions[..., :used]), used)
        visible = None
        if min(rows.stored) + 1 < used:
            last = rows.numbers(rows.stored, dims=4)
            visible = torch.arange(used, device=query.device) <= last
        if self.scorer is not None and self.scorer.needs_weights:
            weights = step.weights_of(self, query.shape[1] // key.shape[1])
            output = attend_once(query, keys, values, scale, weights, visible)
        else:
            grouped = query.shape[1] != keys.shape[1]
            output = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=visible, scale=scale, enable_gqa=grouped
            )
            if self.scorer is not None:
                new = NewToken(rows.tokens, self.next_slot, values=values, value=value)
                self.scorer.step(self.scorer.state, new)
        rows.count_decoded()
        step.end(self)
        return output

    def _step(self) -> Step:
        """The step that this layer takes part in; one of its own where nobody made another."""
        if self.step is None or not self.step.has(self):
            self.step = Step([self])
        return self.step

    def _places(self, positions: Tensor) -> Tensor:
        """Positions inside the cache: [B, Hkv, L], or [B, 1, L] where no score tells heads apart."""
        return ranks(positions if self.scorer is not None else positions[:, :1])

    def _check_module(self, module: nn.Module) -> None:
        if self._module is None:
            self._module = weakref.ref(module)
        elif self._module() is not module:
            raise ValueError("this cache was filled by another model: make a new BudgetCache for this one")
