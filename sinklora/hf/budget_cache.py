"""`BudgetCache`: a key/value cache with a budget, for `generate` and any other use of `past_key_values`.

SinkLoRA, arXiv 2406.05678, section 3.3; H2O, arXiv 2306.14048.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache

from sinklora.cache.layer import BudgetLayer
from sinklora.cache.policies import CachePolicy, make_policy
from sinklora.hf.cache_attention import CACHE_NAME
from sinklora.hf.models import check_architecture
from sinklora.hf.pattern_attention import ATTENTION_NAME
from sinklora.hf.rope import find_transformer


class BudgetCache(Cache):
    """A cache that keeps what its policy keeps: `model.generate(**inputs, past_key_values=BudgetCache(...))`.

    `model` is a causal language model of transformers (or a wrapper around one): it gets the attention that
    feeds the cache, which is `sdpa` in every other use. A config instead of a model leaves that to you:
    `model.set_attn_implementation("sinklora_cache")`. `prefill_chunk`: None attends to the whole prompt and
    then evicts (H2O's release); an int evicts after so many tokens, so that the cache never holds more than
    the budget and a chunk (1 is the algorithm of the paper). A fraction as budget is one of the tokens seen
    when several tokens come at once (a prompt, a turn, a piece of a prompt); decoding does not change it.

    Kept tokens have the positions they were written with, and positions count on. Works for any batch, padded
    left or right, greedy or sampling or beam search, several turns. Raises ValueError, each time saying what
    to do, for an architecture without AttentionInterface, sliding windows, training, `use_cache=False`,
    packed documents, cropping (assisted decoding), and a cache given to another model or batch.
    """

    def __init__(
        self,
        model: nn.Module | PreTrainedConfig,
        policy: CachePolicy,
        *,
        prefill_chunk: int | None = None,
    ) -> None:
        if not isinstance(policy, CachePolicy):
            raise TypeError(f"policy={policy!r}: expected a CachePolicy such as sinklora.H2O(budget=0.2)")
        if prefill_chunk is not None and (
            isinstance(prefill_chunk, bool) or not isinstance(prefill_chunk, int) or prefill_chunk < 1
        ):
            raise ValueError(f"prefill_chunk={prefill_chunk!r}: expected tokens (1 or more), or None")
        config = model if isinstance(model, PreTrainedConfig) else find_transformer(model).config
        check_architecture(config)
        if not isinstance(model, PreTrainedConfig):
            feed_scores(model)
        self.policy, self.prefill_chunk = policy, prefill_chunk
        # A second list, because that of transformers may hold layers of every kind.
        self.budget_layers = [BudgetLayer(policy, prefill_chunk) for _ in range(config.num_hidden_layers)]
        super().__init__(layers=list(self.budget_layers))

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What the model's attention calls with new keys and values, [B, Hkv, Q, D]."""
        self._check_answered()
        return self.budget_layers[layer_idx].update(key_states, value_states, *args, **kwargs)

    def _check_answered(self) -> None:
        waiting = [i for i, layer in enumerate(self.budget_layers) if layer.awaits_attention]
        if waiting:
            raise ValueError(
                f"the attention of layer {waiting[0]} did not answer to the cache: make it with the model, "
                f"BudgetCache(model, ...), or call model.set_attn_implementation({CACHE_NAME!r})"
            )

    def nbytes(self) -> int:
        """Bytes that the cache holds: keys, values, positions and scores of all layers."""
        self._check_answered()
        return sum(layer.nbytes() for layer in self.budget_layers)

    def kept_positions(self, layer: int) -> Tensor:
        """Positions of the tokens a layer keeps, ascending [B, Hkv, slots]; -1 fills rows that keep fewer."""
        self._check_answered()
        return self.budget_layers[layer].kept_positions()


def feed_scores(model: nn.Module) -> nn.Module:
    """Give the model the attention that a BudgetCache needs; returns the same object.

    A model with a pattern has it already. Raises ValueError where the architecture has no such choice.
    """
    transformer = find_transformer(model)
    if transformer.config._attn_implementation not in (ATTENTION_NAME, CACHE_NAME):
        transformer.set_attn_implementation(CACHE_NAME)
        if transformer.config._attn_implementation != CACHE_NAME:
            raise ValueError(
                f"{type(transformer).__name__} does not use transformers' AttentionInterface, so it "
                "cannot feed a BudgetCache"
            )
    return model


def cache_factory(model: nn.Module, kv: str, budget: float | int | None) -> Callable[[], Cache] | None:
    """What makes a fresh cache for each prompt, by name (see POLICIES); None for "full", transformers' own.

    Raises ValueError for an unknown name or a wrong budget, at once.
    """
    policy = make_policy(kv, budget)
    return partial(BudgetCache, model, policy) if policy.bounded else None
