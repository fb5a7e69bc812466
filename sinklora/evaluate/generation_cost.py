"""Table 5: what a cache costs in time and memory, prompt and decoding apart, beside transformers' own."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from sinklora.evaluate.timing import Stopwatch, in_rounds, median_ratio
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import input_device

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


def generation_rounds(
    model: PreTrainedModel,
    caches: Mapping[str, Callable[[], Cache]],
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch: int,
    rounds: int = 3,
    progress: bool = True,
) -> pd.DataFrame:
    """One row for each cache, transformers' own first, and round, in each of which every cache has its turn.

    All read the same random prompt and decode `new_tokens` a row. Columns: `cache`, `round`, `prompt (s)`,
    `decoded tokens/s`, `cache (bytes)` at the end.
    """
    ids = torch.randint(3, model.config.vocab_size, (batch, prompt_tokens), device=input_device(model))
    cases = {
        name: partial(generate, model, make, ids, new_tokens)
        for name, make in {OWN: DynamicCache, **caches}.items()
    }
    what = f"{batch} x {prompt_tokens} tokens"
    costs = in_rounds(cases, rounds=rounds, warmup=0, what=what, progress=progress)
    rows = [
        {
            "cache": name,
            "round": number,
            "prompt (s)": cost.prompt,
            "decoded tokens/s": batch * new_tokens / cost.decoding,
            "cache (bytes)": cost.held,
        }
        for name, own in costs.items()
        for number, cost in enumerate(own)
    ]
    return pd.DataFrame(rows)


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

    Ratios are to transformers' DynamicCache with SDPA in the same round, and the medians of the rounds are
    given (see `generation_rounds`).
    """
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "batch": batch, "rounds": rounds}
    return medians_of_rounds(generation_rounds(model, caches, **sizes, progress=progress))


def medians_of_rounds(costs: pd.DataFrame) -> pd.DataFrame:
    """The lines of `compare_caches` from those of `generation_rounds`."""
    base = costs[costs.cache == OWN]
    lines = []
    for name, own in costs.groupby("cache", sort=False):
        held = own["cache (bytes)"].iloc[-1]
        lines.append(
            {
                "cache": name,
                "prompt (s)": own["prompt (s)"].median(),
                "prompt, ratio": median_ratio(list(own["prompt (s)"]), base["prompt (s)"]),
                "decoded tokens/s": own["decoded tokens/s"].median(),
                "decoding, times faster": median_ratio(
                    list(own["decoded tokens/s"]), base["decoded tokens/s"]
                ),
                "cache (MiB)": held / 2**20,
                "cache, share": held / base["cache (bytes)"].iloc[-1],
            }
        )
    return pd.DataFrame(lines)


class Generation(NamedTuple):
    """Seconds of the prompt and of decoding, bytes of the cache at the end, and the tokens decoded [B, N]."""

    prompt: float
    decoding: float
    held: int
    written: torch.Tensor


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    make_cache: Callable[[], Cache],
    ids: torch.Tensor,
    new_tokens: int,
    *,
    decode: Callable[..., Any] | None = None,
) -> Generation:
    """Read a prompt [B, N] into a cache and decode greedily `new_tokens` a row, each part timed.

    `decode`: what is called for a token in place of the model, such as the model compiled.
    """
    decode = decode or model
    cache = make_cache()
    watch = Stopwatch(input_device(model))
    logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    prompt = watch.lap().wall
    written = [ids[:, :0]]
    for _ in range(new_tokens):
        written.append(logits[:, -1:].argmax(-1))
        logits = decode(written[-1], past_key_values=cache, use_cache=True).logits
    decoding = watch.lap().wall
    return Generation(prompt, decoding, cache_bytes(cache), torch.cat(written, 1))
