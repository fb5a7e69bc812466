"""Table 5: what a cache costs in time and memory, prompt and decoding apart, beside transformers' own."""

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import NamedTuple

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from sinklora.evaluate.timing import Stopwatch, in_rounds, median_ratio
from sinklora.hf.budget_cache import BudgetCache

OWN = "transformers' cache"  # what all others are compared with


def cache_bound_model(layers: int = 2, heads: int = 8, head_size: int = 64) -> PreTrainedModel:
    """A random model whose decoding reads more cache than weights; time does not depend on the values."""
    torch.manual_seed(0)
    width = heads * head_size
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=65536,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


def cache_bytes(cache: Cache) -> int:
    """Bytes of a cache, a BudgetCache's bookkeeping included."""
    if isinstance(cache, BudgetCache):
        return cache.nbytes()
    tensors: list[torch.Tensor] = []
    for layer in cache.layers:
        tensors += [getattr(layer, "keys"), getattr(layer, "values")]  # noqa: B009 (not every kind has them)
    return sum(x.numel() * x.element_size() for x in tensors)


@torch.inference_mode()
def compare_caches(
    model: PreTrainedModel,
    caches: Mapping[str, Callable[[], Cache]],
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int,
    rounds: int = 3,
    progress: bool = True,
) -> pd.DataFrame:
    """Seconds of the prompt, tokens a second of decoding, and bytes, for each cache and transformers' own.

    In each round every cache reads the same random prompt and decodes `new_tokens` a row; ratios are to
    transformers' DynamicCache with SDPA in the same round, and the medians of the rounds are given.
    """
    ids = torch.randint(3, model.config.vocab_size, (batch, prompt_tokens), device=model.device)
    cases = {
        name: partial(_generate, model, make, ids, new_tokens)
        for name, make in {OWN: DynamicCache, **caches}.items()
    }
    what = f"{prompt_tokens} tokens"
    costs = in_rounds(cases, rounds=rounds, warmup=0, what=what, progress=progress)
    base = costs[OWN]
    rows = []
    for name, own in costs.items():
        rows.append(
            {
                "cache": name,
                "prompt (s)": median(c.prompt for c in own),
                "prompt, ratio": median_ratio([c.prompt for c in own], [c.prompt for c in base]),
                "decoded tokens/s": median(batch * new_tokens / c.decoding for c in own),
                "decoding, times faster": median_ratio([c.decoding for c in base], [c.decoding for c in own]),
                "cache (MiB)": own[-1].held / 2**20,
                "cache, share": own[-1].held / base[-1].held,
            }
        )
    return pd.DataFrame(rows)


class _Generation(NamedTuple):
    """Seconds of the prompt and of decoding, bytes of the cache at the end."""

    prompt: float
    decoding: float
    held: int


def _generate(
    model: PreTrainedModel, make_cache: Callable[[], Cache], ids: torch.Tensor, new_tokens: int
) -> _Generation:
    cache = make_cache()
    watch = Stopwatch(model.device)
    logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    prompt = watch.lap().wall
    for _ in range(new_tokens):
        token = logits[:, -1:].argmax(-1)
        logits = model(token, past_key_values=cache, use_cache=True).logits
    return _Generation(prompt, watch.lap().wall, cache_bytes(cache))
