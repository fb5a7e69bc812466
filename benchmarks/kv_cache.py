"""Time and memory of bounded caches as ratios to transformers' DynamicCache with SDPA, and to plain SDPA.

    python benchmarks/kv_cache.py --prompts 2048,8192 --out out/benchmarks

Three tables. `generation`: a random model whose decoding is bound by its cache reads a prompt and decodes;
`ideal` is the memory traffic of decoding with the whole cache over that with the budget, weights included.
`operators`: one layer's attention alone, prompt and decoding step, against SDPA over as many tokens, and
a decoding step of the model against the same model with transformers' caches that hold as many tokens: the
static one, which writes in place, and the usual one, which copies itself at every step.
`memory`: peak resident memory that a prompt adds, of one layer's attention and of the whole model, each case
in its own process. In each round every case runs once, so that a busy machine slows all of them; ratios are
of the same round, medians of all rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pandas as pd
import torch
from kept_memory import start_anew_unless_kept
from kv_cache_memory import memory
from kv_cache_operators import operators
from kv_cache_options import KINDS, CacheOptions, random_cache_model
from script_options import script, settings_of
from table_files import write_table

from sinklora.cache.full import Full
from sinklora.cache.policies import CachePolicy, make_policy
from sinklora.evaluate.generation_cost import compare_caches
from sinklora.hf.budget_cache import BudgetCache
from sinklora.records.tables import markdown


def generation(options: CacheOptions) -> pd.DataFrame:
    """Prompt and decoding of the whole model, for every prompt length, policy and budget."""
    model = random_cache_model(options)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    frames = []
    for prompt in options.prompts:
        policies: dict[str, CachePolicy] = {"full (ours)": Full()}
        for budget in options.budgets:
            policies |= {f"{name} {budget:.0%}": make_policy(name, budget) for name in KINDS}
        caches = {name: functools.partial(BudgetCache, model, policy) for name, policy in policies.items()}
        costs = compare_caches(
            model,
            caches,
            prompt_tokens=prompt,
            new_tokens=options.steps,
            batch=options.batch,
            rounds=options.repeats,
        )
        held = costs["cache (MiB)"] * 2**20
        costs["ideal"] = (weights + held.iloc[0]) / (weights + held)
        frames.append(costs.assign(prompt=prompt))
    table = pd.concat(frames, ignore_index=True)
    table["gain"] = ["yes" if ratio > 1 else "no gain" for ratio in table["decoding, times faster"]]
    return table[["prompt", *(name for name in table.columns if name != "prompt")]]


MAKERS: dict[str, Callable[[CacheOptions], pd.DataFrame]] = {
    "memory": memory,
    "operators": operators,
    "generation": generation,
}


def main(options: CacheOptions) -> None:
    """Make, print and write the tables."""
    start_anew_unless_kept()
    torch.set_num_threads(options.threads)
    what = (
        f"Model: {options.shape}; operators: {options.heads} heads of {options.head_size}; "
        f"{options.dtype}, {options.device}, {options.threads} threads, batch {options.batch} (one row for "
        f"prompts of one layer), {options.steps} decoded tokens, "
        f"medians of {options.repeats} rounds."
    )
    for kind in options.only:
        table = MAKERS[kind](options)
        name = f"kv_cache_{kind}_{options.label}" if options.label else f"kv_cache_{kind}"
        write_table(options.out, name, table, f"{markdown(table)}\n\n{what}\n", settings_of(options))


application = script(main, CacheOptions)

if __name__ == "__main__":
    application()
