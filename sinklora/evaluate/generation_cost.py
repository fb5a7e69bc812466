"""Table 5: what a cache costs in time and memory, prompt and decoding apart, beside transformers' own."""

import statistics
import time
from collections.abc import Callable, Mapping

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from sinklora.hf.budget_cache import BudgetCache


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
def generation_cost(
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
    makers = {"transformers' cache": DynamicCache, **caches}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    held: dict[str, int] = {}
    for _ in tqdm(range(rounds), desc=f"{prompt_tokens} tokens", disable=not progress):
        for name, make in makers.items():
            prompt, decode, held[name] = _generate(model, make(), ids, new_tokens)
            times[name].append((prompt, decode))
    rows = []
    base = times["transformers' cache"]
    for name, mine in times.items():
        pairs = list(zip(mine, base, strict=True))
        rows.append(
            {
                "cache": name,
                "prompt (s)": statistics.median(p for p, _ in mine),
                "prompt, ratio": statistics.median(m[0] / b[0] for m, b in pairs),
                "decoded tokens/s": statistics.median(batch * new_tokens / d for _, d in mine),
                "decoding, times faster": statistics.median(b[1] / m[1] for m, b in pairs),
                "cache (MiB)": held[name] / 2**20,
                "cache, share": held[name] / held["transformers' cache"],
            }
        )
    return pd.DataFrame(rows)


def _generate(
    model: PreTrainedModel, cache: Cache, ids: torch.Tensor, new_tokens: int
) -> tuple[float, float, int]:
    start = _now(model)
    logits = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    prompt = _now(model)
    for _ in range(new_tokens):
        token = logits[:, -1:].argmax(-1)
        logits = model(token, past_key_values=cache, use_cache=True).logits
    end = _now(model)
    return prompt - start, end - prompt, cache_bytes(cache)


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
