"""One layer of a bounded key/value cache: attention over what is kept, for a prompt and for a decoded token.

The tensors have one slot for each token of the budget and a free one. A decoded token is written into that
and attends to all; then the slot of the evicted token is the free one: nothing is moved, no shape changes.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from sinklora.cache.policies import CachePolicy
from sinklora.cache.prompt_attention import attend_prompt
from sinklora.cache.ragged_attention import attend_ragged
from sinklora.cache.rotation import Rotation, ranks
from sinklora.cache.scored_attention import attend_newest, attend_once
from sinklora.cache.slots import like
from sinklora.cache.steps import step_together
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
    `query_rotation`: what moves queries for a policy that does (`CachePolicy.moves_queries`), else None;
    ValueError where it is missing. `in_model`: its cache lets layers that share slots evict together; a layer
    alone is a model of one layer.
    """

    is_sliding = False
    is_croppable = False

    def __init__(
        self,
        policy: CachePolicy,
        prefill_chunk: int | None = None,
        rotation: Rotation | None = None,
        query_rotation: Rotation | None = None,
        in_model: bool = False,
    ) -> None:
        super().__init__(policy)
        if policy.moves_queries and query_rotation is None:
            raise ValueError(f"query_rotation=None: {policy} moves queries, say how they are turned")
        if policy.sharing.among != "head" and rotation is not None:
            raise ValueError(
                f"{policy}: heads that share slots keep different tokens, so that a query would have another "
                'position inside the cache for each: take positions="text", or share="head"'
            )
        self.shares_in_model = in_model and policy.sharing.among == "model"
        if self.shares_in_model and prefill_chunk is not None:
            raise ValueError(
                f"prefill_chunk={prefill_chunk}: {policy} shares slots among all layers, and the first layer "
                'has read all chunks when the second begins: take prefill_chunk=None, or share="layer"'
            )
        self.prefill_chunk, self.rotation, self.query_rotation = prefill_chunk, rotation, query_rotation
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next call may have another batch size."""
        self.forget()
        self._module: weakref.ref[nn.Module] | None = None
        self.awaits_attention = self.has_attended = self.is_initialized = False

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
        if self.step is None and (self.rows is None or not self.rows.columns):
            self.lazy_initialization(key_states, value_states)
        self.check_fits(key_states)
        self.awaits_attention = True
        setattr(key_states, MARK, self)
        return key_states, value_states

    def get_seq_length(self) -> Any:
        """Tokens seen, padding included: where the next token's position counts from.

        A number, or a tensor [] where a compiled step has decoded them and the host would have to wait.
        """
        if self.rows is None:
            return 0
        return self.rows.columns if self.step is None else self.step.columns_seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The mask is asked for the new tokens alone: which of them are padding."""
        if query_length == 1 and self.step is not None and self.step.constant:
            return 1, -1  # the last column of any mask, however many there are
        return query_length, self.get_seq_length()

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
        ahead = self.get_seq_length() - self.rows.columns
        if isinstance(ahead, Tensor):
            self.bring_up_to_date()
            ahead = 0
        if self.rotation is None:
            return max(self.rows.tokens) + ahead
        return max(self.rows.longest_attended, max(self.rows.stored) + min(ahead, 1))

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

    def limit(self, policy: CachePolicy) -> None:
        """Have this policy's budget after the next turn, also where it is smaller."""
        self.policy = policy
        if self.rows is not None:
            self.rows.limited = [True] * len(self.rows)
        if self.scorer is not None:  # how it chooses may depend on the budget
            state, self.scorer = self.scorer.state, self.new_scorer()
            assert self.scorer is not None
            self.scorer.state = state

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
        self._check_module(module)
        self.has_attended = True
        if query.shape[2] == 1 and real is None and self.step is not None and self.step.constant:
            return self._decode(query, key, value, scale)
        return self.attend_and_grow(query, key, value, real, scale)

    def attend_and_grow(
        self, query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, scale: float
    ) -> Tensor:
        """Attention of new tokens after which shapes, or what the host counts, may be others."""
        rows = self.counted()
        self.groups = query.shape[1] // key.shape[1]
        if query.shape[2] == 1 and real is None and min(rows.tokens) > 0:
            if self.step is None or self.step.outgrown:
                step_together([self])
            return self._decode(query, key, value, scale)
        self.bring_up_to_date()
        rows.columns += query.shape[2]
        if real is None:
            return attend_prompt(self, query, key, value, [query.shape[2]] * query.shape[0], scale)
        # Padding goes to the end of its row, where causality hides it.
        order = (~real).to(torch.int8).argsort(dim=-1, stable=True)
        query, key, value = (x.gather(2, like(order[:, None, :, None], x)) for x in (query, key, value))
        output = attend_prompt(self, query, key, value, real.sum(-1).tolist(), scale)
        output = torch.empty_like(output).scatter_(2, like(order[:, None, :, None], output), output)
        return output.masked_fill_(~real[:, None, :, None], 0.0)

    def _decode(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One new token a row: put it into the free slot, attend to all that is there, then free another."""
        assert self.step is not None
        stored = self.step.begin(self, key, value)
        keys = stored.keys
        if self.rotation is not None:
            used = keys.shape[2]
            query = self.rotation.rotated(query, stored.places, used)
            keys = self.rotation.rotated(keys, self.places(stored.positions), used)
        if stored.ragged is not None:
            assert stored.weights is not None
            output = attend_ragged(
                query, keys, stored.values, scale, stored.weights, stored.ragged, stored.visible
            )
        elif stored.weights is not None:
            output = attend_once(query, keys, stored.values, scale, stored.weights, stored.visible)
        else:
            output = attend_newest(query, keys, stored.values, scale, stored.visible)
        self.step.end(self, stored, value)
        return output

    def places(self, positions: Tensor) -> Tensor:
        """Positions inside the cache: [B, Hkv, L], or [B, 1, L] where no score tells heads apart."""
        return ranks(positions if self.scorer is not None else positions[:, :1])

    def _check_module(self, module: nn.Module) -> None:
        if self._module is None:
            self._module = weakref.ref(module)
        elif self._module() is not module:
            raise ValueError("this cache was filled by another model: make a new BudgetCache for this one")
