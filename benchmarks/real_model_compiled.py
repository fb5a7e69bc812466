"""A real model's decoding through bounded caches as it is, and compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from statistics import median
from typing import Any

import pandas as pd
import torch
from real_model_caches import cell, load_model, make_cache
from real_model_options import BOUNDED, DYNAMIC, RealModelOptions

from sinklora.evaluate import generation_cost
from sinklora.evaluate.timing import in_rounds, median_ratio


def measure_compiled(options: RealModelOptions, batch: int, prompt: int) -> dict[str, list[list[float]]]:
    """Seconds of every round by cache, eager and compiled; the round that compiles is left out."""
    model = load_model(options)
    torch.compiler.reset()  # the graphs of another prompt do not count against the limit of this one
    graph = torch.compile(model.__call__, mode="reduce-overhead", dynamic=False)
    ids = torch.arange(prompt, device=model.device).expand(batch, -1) % model.config.vocab_size

    def run(name: str, decode: Callable[..., Any] | None) -> list[float]:
        make = functools.partial(make_cache, name, model, options, prompt)
        cost = generation_cost.generate(model, make, ids, options.steps, decode=decode)
        return [cost.prompt, cost.decoding]

    bounded = [name for name in BOUNDED if name in options.compared_caches]
    cases = {name: functools.partial(run, name, None) for name in (DYNAMIC, *bounded)}
    cases |= {f"{name}, compiled": functools.partial(run, name, graph) for name in bounded}
    return in_rounds(cases, rounds=options.repeats, what=f"{batch} x {prompt}, compiled")


def compiled(options: RealModelOptions) -> pd.DataFrame:
    """Decoding of bounded caches as they are and compiled, beside DynamicCache."""
    rows = []
    for batch, prompt in [(batch, prompt) for batch in options.batches for prompt in options.prompts]:
        rounds = cell(options, measure_compiled, batch, prompt)
        decoded = {name: [seconds for _, seconds in own] for name, own in rounds.items()}
        for name, own in decoded.items():
            eager = decoded[name.removesuffix(", compiled")]
            rows.append(
                {
                    "rows": batch,
                    "prompt": prompt,
                    "cache": name,
                    "decoded tokens/s": median(batch * options.steps / seconds for seconds in own),
                    "times eager": median_ratio(eager, own),
                    "times DynamicCache": median_ratio(decoded[DYNAMIC], own),
                }
            )
    return pd.DataFrame(rows)
