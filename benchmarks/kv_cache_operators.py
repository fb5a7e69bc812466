"""One layer's attention over a bounded cache, alone, beside plain SDPA; and a model's decoding step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from statistics import median
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from kv_cache_options import KINDS, CacheOptions, random_cache_model
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sinklora.cache.layer import BudgetLayer
from sinklora.cache.policies import CachePolicy, make_policy
from sinklora.evaluate.timing import in_rounds, median_ratio, timed
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.cache_positions import RotaryPositions

MODULE = nn.Identity()


def operators(options: CacheOptions) -> pd.DataFrame:
    """One layer: the prompt's attention and a decoding step, against plain SDPA of the same round."""
    rows = []
    for prompt in options.prompts:
        query, key, value = random_tensors(options, prompt)
        plain = functools.partial(F.scaled_dot_product_attention, query, key, value, is_causal=True)
        cases: dict[str, Callable[[], Any]] = {"plain SDPA": plain}
        for name in KINDS:
            cases[name] = functools.partial(read_prompt, make_policy(name, 0.2), query, key, value)
        rows += _rounds(f"prompt of {prompt}", cases, options)
        for budget in options.budgets:
            rows += _rounds(f"step over {budget:.0%} of {prompt}", _steps(options, prompt, budget), options)
            # Bound to no name: their caches are to be gone before those of the next budget are read.
            what = f"model's step over {budget:.0%} of {prompt}"
            rows += _rounds(what, _model_steps(options, prompt, budget), options)
    return pd.DataFrame(rows)


def random_tensors(options: CacheOptions, tokens: int, batch: int = 1) -> list[Tensor]:
    """Queries, keys and values of one layer."""
    torch.manual_seed(0)
    shape = (batch, options.heads, tokens, options.head_size)
    kind = {"dtype": getattr(torch, options.dtype), "device": options.device}
    return [torch.randn(shape, **kind) for _ in range(3)]


def read_prompt(policy: CachePolicy, query: Tensor, key: Tensor, value: Tensor) -> BudgetLayer:
    """A layer of the cache, with a prompt read."""
    rotation = _rotation(query.shape[-1]) if policy.moves_queries else None
    layer = BudgetLayer(policy, query_rotation=rotation)
    _feed(layer, query, key, value)
    return layer


def _rotation(head_size: int) -> RotaryPositions:
    rotary = LlamaRotaryEmbedding(LlamaConfig(head_dim=head_size))
    return RotaryPositions(rotary, LlamaRotaryEmbedding.__module__)


def _feed(layer: BudgetLayer, query: Tensor, key: Tensor, value: Tensor) -> None:
    # `update` marks the key it is given; a view of its own keeps the caller's unmarked.
    key, value = layer.update(key.view_as(key), value)
    layer.attend(MODULE, query, key, value, None, query.shape[-1] ** -0.5)


def _steps(options: CacheOptions, prompt: int, budget: float) -> dict[str, Callable[[], Any]]:
    kept = random_tensors(options, max(1, int(budget * prompt)), options.batch)
    new = random_tensors(options, 1, options.batch)

    def plain() -> None:
        for _ in range(options.steps):
            F.scaled_dot_product_attention(new[0], kept[1], kept[2])

    def decode(layer: BudgetLayer) -> None:
        for _ in range(options.steps):
            _feed(layer, *new)

    cases: dict[str, Callable[[], Any]] = {"plain SDPA": plain}
    for name in KINDS:
        layer = read_prompt(make_policy(name, budget), *random_tensors(options, prompt, options.batch))
        cases[name] = functools.partial(decode, layer)
    return cases


@torch.inference_mode()
def _model_steps(options: CacheOptions, prompt: int, budget: float) -> dict[str, Callable[[], Any]]:
    model = random_cache_model(options)
    ids = torch.ones(options.batch, prompt, dtype=torch.long, device=options.device)

    def decode(cache: Any) -> None:
        for _ in range(options.steps):
            model(ids[:, :1], past_key_values=cache, use_cache=True)

    def read(tokens: int, cache: Any) -> Any:
        model(ids[:, :tokens], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def growing(make: Callable[[], Any]) -> Callable[[], None]:
        caches = [read(kept, make()) for _ in range(options.repeats + 1)]  # one a round
        return lambda: decode(caches.pop())

    kept = max(1, int(budget * prompt))
    static = functools.partial(StaticCache, config=model.config, max_cache_len=kept + options.steps)
    cases = {"static cache": growing(static), "transformers' cache": growing(DynamicCache)}
    for name in KINDS:
        cache = BudgetCache(model, make_policy(name, budget))
        cases[name] = functools.partial(decode, read(prompt, cache))
    return cases


@torch.inference_mode()
def _rounds(what: str, cases: dict[str, Callable[[], Any]], options: CacheOptions) -> list[dict[str, Any]]:
    calls = {name: functools.partial(timed, run, options.device) for name, run in cases.items()}
    laps = in_rounds(calls, rounds=options.repeats, what=what)
    seconds = {name: [lap.wall for lap in own] for name, own in laps.items()}
    base = next(iter(seconds.values()))
    return [
        {"what": what, "cache": name, "ratio": median_ratio(own, base), "seconds": median(own)}
        for name, own in seconds.items()
    ]
