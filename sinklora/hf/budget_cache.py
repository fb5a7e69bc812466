"""`BudgetCache`: a key/value cache with a budget, for `generate` and any other use of `past_key_values`.

SinkLoRA, arXiv 2406.05678, section 3.3; H2O, arXiv 2306.14048.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache

from sinklora.cache.full import Full
from sinklora.cache.policies import CachePolicy, make_policy
from sinklora.cache.sharing import keep_shared
from sinklora.cache.steps import step_together
from sinklora.hf.attention_switch import CalledCache
from sinklora.hf.budget_cache_layer import NO_GRAPH, BudgetCacheLayer
from sinklora.hf.cache_positions import (
    INSIDE_CACHE,
    Purpose,
    RotaryPositions,
    check_rotation,
    trained_length,
)
from sinklora.hf.prepared_models import check_config, enable_budget_caches
from sinklora.hf.rope import find_transformer
from sinklora.records.checks import Count, check_choice, check_value

POSITIONS = ("text", "cache")


class BudgetCache(CalledCache):
    """A cache that keeps what its policy keeps: `model.generate(**inputs, past_key_values=BudgetCache(...))`.

    `model` is a causal language model of transformers or a wrapper around one. It attends through the cache
    while it is called with it; every other call has the model's own attention. A cache made from a config,
    copied or loaded from a pickle works with a model that other BudgetCaches were made with, or that
    `enable_budget_caches` was given (before `torch.compile`). One thread at a time: a call beside another
    thread's is refused where either has such a cache; give each thread a `copy.deepcopy(model)`.
    `prefill_chunk`: None attends to the whole prompt and then evicts (H2O's release); an int evicts after so
    many tokens, so that the cache never holds more than the budget and a chunk (1 is the algorithm of the
    paper). A fraction as budget is one of the tokens seen when several tokens come at once (a prompt, a turn,
    a piece of a prompt); decoding does not change it.

    `positions`: with "text", kept tokens have the positions they were written with, and positions count on
    (H2O's release); a warning tells when they pass what the model was trained for. With "cache", the kept
    tokens stand at 0, 1, 2, ... in their order, and new ones go on from there (StreamingLLM), so that a
    stream may be of any length; for models with rotary position embeddings, as are policies that move queries
    (Replay). A call with a few tokens checks that (`probe=False` skips it, for weights that cannot run yet).

    `compiled`: let `generate` compile decoding, as it does for transformers' StaticCache: by itself on a GPU,
    where CUDA graphs replay it; the prompt is not compiled. One graph serves all steps, and all prompts under
    a budget in tokens; a budget that is a fraction gives other shapes with each prompt, and a graph for them.
    Until a row is full it costs as much as a full one. A model that you compile yourself needs no `compiled`:
    once all rows are full, its steps are one graph.

    Works for any batch, padded wherever in a row, greedy or sampling or beam search, several turns; as
    DynamicCache does, copied, pickled, filled under `torch.inference_mode`. Raises ValueError, each time
    saying what to do: at once for an architecture without AttentionInterface, with soft-capped scores,
    learned sinks, sliding windows, latent or linear attention, and for prefix tuning; when called, for
    training, gradients, `use_cache=False`, packed documents, cropping (assisted decoding), and a cache given
    to another model or batch.
    """

    def __init__(
        self,
        model: nn.Module | PreTrainedConfig,
        policy: CachePolicy,
        *,
        prefill_chunk: int | None = None,
        positions: str = "text",
        compiled: bool = False,
        probe: bool = True,
    ) -> None:
        if not isinstance(policy, CachePolicy):
            raise TypeError(f"policy={policy!r}: expected a CachePolicy such as sinklora.H2O(budget=0.2)")
        check_value("prefill_chunk", prefill_chunk, Count | None)
        check_choice("positions", positions, POSITIONS)
        if compiled and not policy.bounded:
            raise ValueError(
                f"compiled=True: {policy} grows with every token, so that no graph serves two steps: take a "
                "policy with a budget, or transformers' StaticCache"
            )
        if compiled and policy.sharing.among == "model":
            raise ValueError(
                f"compiled=True: {policy} gives each layer another number of slots after each prompt, so no "
                'graph serves two: take share="layer"'
            )
        transformer = None
        if isinstance(model, PreTrainedConfig):
            config = model
            check_config(config)
        else:
            transformer = find_transformer(enable_budget_caches(model))
            config = transformer.config
        self.policy, self.prefill_chunk, self.positions = policy, prefill_chunk, positions
        purpose = INSIDE_CACHE if positions == "cache" else Purpose.of_policy(policy)
        rotates = positions == "cache" or policy.moves_queries
        turning = RotaryPositions.of_model(transformer, purpose) if rotates else None
        rotation = turning if positions == "cache" else None
        self._trained_length, self._warned = trained_length(config), False
        self._rope = copy.deepcopy(_rope_of(config))
        # A second list, because that of transformers may hold layers of every kind.
        self.budget_layers = [
            BudgetCacheLayer(policy, prefill_chunk, rotation, turning, compiled)
            for _ in range(config.num_hidden_layers)
        ]
        self._in_call = False
        super().__init__(layers=list(self.budget_layers))
        if transformer is not None and turning is not None and probe:
            everything = BudgetCache(transformer, Full(), positions=positions, probe=False)
            further = turning if rotation is None else None
            check_rotation(transformer, everything, everything.budget_layers, purpose, further)

    def begin_call(self, model: PreTrainedModel, options: Mapping[str, Any]) -> None:
        """A model is called with this cache.

        ValueError where it was told not to use one, or to return attention, where its positions are not those
        that the cache was made for, and where the call before was interrupted before all layers had attended.
        """
        if _asked(model, options, "use_cache") is False:
            raise ValueError(
                "use_cache=False (an argument, or the model's config) with a BudgetCache as past_key_values: "
                "pass use_cache=True, or leave the cache out"
            )
        if _asked(model, options, "output_attentions"):
            raise ValueError(
                "output_attentions=True (an argument, or the model's config) with a BudgetCache, which "
                "returns none: leave it out, or take transformers' DynamicCache"
            )
        if _rope_of(model.config) != self._rope:
            raise ValueError(
                "past_key_values: the model's positions were changed (extend_context, restore_rope) after "
                "this cache was made for it; make a new BudgetCache"
            )
        if self._in_call:
            self._finish_interrupted_call()
        self._in_call = True
        for layer in self.budget_layers:
            layer.has_attended = False
        if any(layer.step is None or not layer.step.constant for layer in self.budget_layers):
            self._prepare_layers()

    @torch.compiler.disable(reason=NO_GRAPH)
    def _finish_interrupted_call(self) -> None:
        """Do what the last call left undone behind its last attention. ValueError where it ended before."""
        layers = self.budget_layers
        in_attention = any(layer.has_attended and layer.awaits_attention for layer in layers)
        if in_attention or len({(layer.has_attended, layer.awaits_sharing) for layer in layers}) > 1:
            raise ValueError(
                "the last call with this cache ended half-way, so its layers hold different tokens: call "
                "reset() and begin again, or make a new BudgetCache"
            )
        self._share_slots()

    @torch.compiler.disable(reason=NO_GRAPH)
    @torch.no_grad()
    def _prepare_layers(self) -> None:
        """Layers decode together; prompts, selections of rows and copies undo that."""
        if not torch.is_inference_mode_enabled():
            for layer in self.budget_layers:
                layer.leave_inference_mode()
        if not self._need_steps():
            return
        for step in step_together(self.budget_layers):
            for x in step.fixed_tensors():
                # CUDA graphs may write where they lie; another cache is recorded anew, not compiled anew.
                torch._dynamo.mark_static_address(x, guard=False)

    def _need_steps(self) -> bool:
        """Whether some layers have no step, or have outgrown it; if so, all have."""
        first = self.budget_layers[0].step
        return first is None or first.outgrown or any(layer.step is None for layer in self.budget_layers)

    def end_call(self) -> None:
        """The call is over. ValueError where some layer did not attend through the cache."""
        unused = [i for i, layer in enumerate(self.budget_layers) if not layer.has_attended]
        if unused:
            raise ValueError(
                f"layers {unused} took no notice of the cache: the model is an encoder, has no keys and "
                "values to store, or skips layers; leave the BudgetCache out for this architecture"
            )
        if self.budget_layers[0].awaits_sharing:  # no decoded token's, whose graph this would break
            self._share_slots()
        if not torch.compiler.is_compiling():
            if self._need_steps():
                self._prepare_layers()
            self._warn_of_positions()
        self._in_call = False

    @torch.compiler.disable(reason=NO_GRAPH)
    @torch.no_grad()
    def _share_slots(self) -> None:
        """Let layers that share their slots evict together, once all of them have read a prompt."""
        awaiting = [layer for layer in self.budget_layers if layer.awaits_sharing]
        if awaiting:
            keep_shared(awaiting)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What the model's attention calls with new keys and values, [B, Hkv, Q, D]."""
        if not self._in_call:
            raise ValueError(
                "this model was not prepared for the cache: make it with the model, BudgetCache(model, ...), "
                "or call sinklora.hf.prepared_models.enable_budget_caches(model), before torch.compile"
            )
        return self.budget_layers[layer_idx].update(key_states, value_states, *args, **kwargs)

    def _warn_of_positions(self) -> None:
        """Say once that attention reaches farther than the model was trained for, and what to do."""
        if self._warned or self._trained_length is None:
            return
        reach = self.budget_layers[0].longest_reach
        if reach <= self._trained_length:
            return
        self._warned = True
        remedy = (
            "count them inside the cache with BudgetCache(..., positions='cache'), or extend the model with "
            "sinklora.extend_context"
            if self.positions == "text"
            else "read prompts in pieces with BudgetCache(..., prefill_chunk=...), or take a smaller budget"
        )
        warnings.warn(
            f"positions reach {reach}, beyond the {self._trained_length} that the model was trained for: "
            f"{remedy}",
            stacklevel=2,
        )

    def nbytes(self) -> int:
        """Bytes that the cache holds: keys, values, positions and scores of all layers."""
        return sum(layer.nbytes() for layer in self.budget_layers)

    def limit(self, policy: CachePolicy) -> None:
        """Have the same policy with a smaller budget from the next turn (several tokens) on.

        Which tokens leave then is decided by the scores that they have. What was evicted before does not come
        back under a larger budget. Raises ValueError for a policy that differs in more than its sizes.
        """
        if not self.policy.is_resized(policy):
            raise ValueError(f"policy={policy}: this cache was filled under {self.policy}; make a new one")
        self.policy = policy
        for layer in self.budget_layers:
            layer.limit(policy)

    def kept_positions(self, layer: int) -> Tensor:
        """Positions of the tokens a layer keeps, ascending [B, Hkv, slots]; -1 fills rows that keep fewer."""
        return self.budget_layers[layer].kept_positions()


def _rope_of(config: PreTrainedConfig) -> tuple[Any, Any]:
    """How positions of a model's text are scaled, and how far they go, by its config or that of a part."""
    text = config.get_text_config(decoder=True)
    return getattr(text, "rope_parameters", None), getattr(text, "max_position_embeddings", None)


def _asked(model: PreTrainedModel, options: Mapping[str, Any], name: str) -> Any:
    """What a call asks for, by its argument or else by the model's config."""
    option = options.get(name)
    return getattr(model.config, name, None) if option is None else option


def cache_factory(model: nn.Module, kv: str, budget: float | int | None) -> Callable[[], Cache] | None:
    """What makes a fresh cache for each prompt, by name (see POLICIES); None for "full", transformers' own.

    Raises ValueError for an unknown name or a wrong budget, at once.
    """
    policy = make_policy(kv, budget)
    return partial(BudgetCache, model, policy) if policy.bounded else None
