"""Peak memory that a prompt adds, of one layer's attention and of the whole model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from kv_cache_operators import random_tensors, read_prompt
from kv_cache_options import KINDS, CacheOptions, random_cache_model
from tqdm import tqdm
from transformers.cache_utils import DynamicCache

from sinklora.cache.policies import make_policy
from sinklora.evaluate.memory import peak_of_a_fork
from sinklora.hf.budget_cache import BudgetCache

Prompt = Callable[[str, CacheOptions, int], Callable[[], Any]]


def memory(options: CacheOptions) -> pd.DataFrame:
    """Peak memory that a prompt adds: one layer's attention, and the whole model with its cache."""
    rows = []
    for what, run in (("one layer", _layer_prompt), ("model", _model_prompt)):
        names = ["plain SDPA", *KINDS]
        peaks = {name: _peak(run, name, options) for name in tqdm(names, desc=what, disable=None)}
        for name, peak in peaks.items():
            ratio = peak / peaks["plain SDPA"]
            tokens = options.memory_prompt
            rows.append(
                {"what": what, "prompt": tokens, "cache": name, "ratio": ratio, "peak (MiB)": peak / 2**20}
            )
    return pd.DataFrame(rows)


def _layer_prompt(name: str, options: CacheOptions, tokens: int) -> Callable[[], Any]:
    inputs = random_tensors(options, tokens)
    if name == "plain SDPA":
        return functools.partial(F.scaled_dot_product_attention, *inputs, is_causal=True)
    return functools.partial(read_prompt, make_policy(name, 0.2), *inputs)


def _model_prompt(name: str, options: CacheOptions, tokens: int) -> Callable[[], Any]:
    model = random_cache_model(options)
    cache = DynamicCache() if name == "plain SDPA" else BudgetCache(model, make_policy(name, 0.2))
    ids = torch.ones(1, tokens, dtype=torch.long, device=options.device)
    return functools.partial(model, ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _peak(make: Prompt, name: str, options: CacheOptions) -> int:
    if options.device == "cuda":
        with torch.inference_mode():
            make(name, options, 64)()  # libraries' workspaces come up before memory is counted
            run = make(name, options, options.memory_prompt)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            output = run()
            torch.cuda.synchronize()
            del output
        return torch.cuda.max_memory_allocated() - held
    return peak_of_a_fork(functools.partial(_prepare, make, name, options))


def _prepare(make: Prompt, name: str, options: CacheOptions) -> Callable[[], Any]:
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    make(name, options, 64)()  # libraries come up before memory is counted
    return make(name, options, options.memory_prompt)
