"""A real model's prompt and decoding through caches: seconds, peak memory, operators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
from real_model_options import BOUNDED, DYNAMIC, LOCAL, POLICIES_BY_TITLE, STATIC, RealModelOptions
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from sinklora.cache.policies import make_policy
from sinklora.evaluate import generation_cost
from sinklora.evaluate.memory import peak_of_a_fork
from sinklora.evaluate.operator_count import operators_per_layer
from sinklora.evaluate.timing import in_rounds, median_ratio
from sinklora.hf.budget_cache import BudgetCache
from sinklora.pretrained.loading import load
from sinklora.records.runs import remember
from sinklora.reproduction.cache.generation_study import machine_and_sources

COUNTED = 128  # tokens of the prompt whose operators are counted: enough for the budget to evict


def kept_tokens(options: RealModelOptions, prompt: int) -> int:
    """How many tokens the budget keeps of a prompt."""
    return max(1, int(options.budget * prompt))


def make_cache(name: str, model: PreTrainedModel, options: RealModelOptions, prompt: int) -> Cache:
    """An empty cache of a title of CACHES, for a prompt of so many tokens."""
    if name == DYNAMIC:
        return DynamicCache()
    if name == STATIC:
        return StaticCache(model.config, kept_tokens(options, prompt) + options.steps)
    return BudgetCache(
        model, make_policy(POLICIES_BY_TITLE[name], options.budget if name in BOUNDED else None)
    )


def load_model(options: RealModelOptions) -> PreTrainedModel:
    """The model in the dtype of the options."""
    torch.set_num_threads(options.threads)
    return load(options.model, dtype=getattr(torch, options.dtype), device=options.device).model


def generate(
    name: str, model: PreTrainedModel, options: RealModelOptions, batch: int, prompt: int
) -> list[float]:
    """Seconds of the prompt, and of decoding `options.steps` tokens a row."""
    tokens = kept_tokens(options, prompt) if name == STATIC else prompt
    ids = torch.arange(tokens, device=model.device).expand(batch, -1) % model.config.vocab_size
    make = functools.partial(make_cache, name, model, options, prompt)
    cost = generation_cost.generate(model, make, ids, options.steps)
    return [cost.prompt, cost.decoding]


def measure_rounds(options: RealModelOptions, batch: int, prompt: int) -> dict[str, list[list[float]]]:
    """Seconds of every round by cache; one round to warm up is left out."""
    model = load_model(options)
    cases = {
        n: functools.partial(generate, n, model, options, batch, prompt) for n in options.compared_caches
    }
    return in_rounds(cases, rounds=options.repeats, what=f"{batch} x {prompt}")


def measure_peak(options: RealModelOptions, batch: int, prompt: int, name: str) -> int:
    """Bytes that prompt and decoding add to what the loaded model takes."""
    if options.device == "cuda":
        model = load_model(options)
        generate(name, model, options, 1, 64)  # libraries' workspaces come up before memory is counted
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        generate(name, model, options, batch, prompt)
        return torch.cuda.max_memory_allocated() - held

    def prepare() -> Callable[[], object]:
        model = load_model(options)
        generate(name, model, options, 1, 64)  # libraries come up before memory is counted
        return functools.partial(generate, name, model, options, batch, prompt)

    return peak_of_a_fork(prepare)


def count_operators(options: RealModelOptions, name: str) -> list[float]:
    """Operators per layer of a prompt and of a decoding step."""
    model = load_model(options)
    make = functools.partial(make_cache, name, model, options, COUNTED)
    tokens = kept_tokens(options, COUNTED) if name == STATIC else COUNTED
    return list(operators_per_layer(model, make, prompt_tokens=tokens, steps=options.steps))


def cell(options: RealModelOptions, compute: Callable[..., Any], *arguments: Any) -> Any:
    """What `compute(options, *arguments)` gives, measured once for these options, sources, versions and
    machine.
    """
    decide = ("model", "dtype", "device", "threads", "budget", "steps", "repeats")
    key = {
        "real_model": compute.__name__,
        "arguments": list(arguments),
        "options": {name: getattr(options, name) for name in decide} | {"caches": options.compared_caches},
        **machine_and_sources(Path(__file__)),
    }
    return remember(key, lambda: compute(options, *arguments), runs=options.runs, prefix="real", name="cell")


def caches(options: RealModelOptions) -> pd.DataFrame:
    """A row for each batch, prompt and cache. Memory first: its processes are forked."""
    peaks = {
        (*s, name): cell(options, measure_peak, *s, name)
        for s in options.settings
        for name in options.compared_caches
    }
    operators = {name: cell(options, count_operators, name) for name in options.compared_caches}
    rows = []
    for batch, prompt in options.settings:
        rounds = cell(options, measure_rounds, batch, prompt)
        read, decoded = ({name: [lap[i] for lap in own] for name, own in rounds.items()} for i in (0, 1))
        base = peaks[batch, prompt, DYNAMIC]
        for name in options.compared_caches:
            speeds = [batch * options.steps / seconds for seconds in decoded[name]]
            peak = peaks[batch, prompt, name]
            ratio = float("nan") if name == STATIC else median_ratio(read[name], read[DYNAMIC])
            rows.append(
                {
                    "rows": batch,
                    "prompt": prompt,
                    "cache": name,
                    "prompt (s)": median(read[name]),
                    "prompt, ratio": ratio,
                    "decoded tokens/s": median(speeds),
                    "tokens/s (least)": min(speeds),
                    "tokens/s (most)": max(speeds),
                    "times DynamicCache": median_ratio(decoded[DYNAMIC], decoded[name]),
                    "times Local": median_ratio(decoded[LOCAL], decoded[name]),
                    "peak (MiB)": peak / 2**20,
                    "peak, ratio": peak / base,
                    "operators a layer, prompt": operators[name][0],
                    "operators a layer, step": operators[name][1],
                }
            )
    return pd.DataFrame(rows)
