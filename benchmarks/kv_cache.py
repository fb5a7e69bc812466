"""Time and memory of bounded caches as ratios to transformers' DynamicCache with SDPA, and to plain SDPA.

    python benchmarks/kv_cache.py --prompts 2048 8192 --out out/benchmarks

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

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaConfig
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from sinklora.cache.full import Full
from sinklora.cache.layer import BudgetLayer
from sinklora.cache.policies import POLICIES, CachePolicy, make_policy
from sinklora.evaluate.generation_cost import cache_bound_model, compare_caches
from sinklora.evaluate.memory import KEEP_MEMORY, peak_of_a_fork
from sinklora.evaluate.timing import in_rounds, median_ratio, timed
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.cache_positions import RotaryPositions
from sinklora.hf.model_shapes import SHAPES, random_model
from sinklora.records.files import atomic_write, write_json
from sinklora.records.provenance import current_provenance
from sinklora.records.tables import markdown

KINDS = [name for name, policy in POLICIES.items() if policy.bounded]


def generation(options: argparse.Namespace) -> pd.DataFrame:
    """Prompt and decoding of the whole model, for every prompt length, policy and budget."""
    model = _model(options)
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


def _model(options: argparse.Namespace) -> Any:
    """The cache-bound model, or one of a named shape, with random weights."""
    dtype = getattr(torch, options.dtype)
    if options.shape is None:
        return cache_bound_model().to(options.device, dtype)
    longest = max(*options.prompts, options.memory_prompt) + options.steps
    return random_model(options.shape, longest, dtype=dtype, device=options.device).eval()


def operators(options: argparse.Namespace) -> pd.DataFrame:
    """One layer: the prompt's attention and a decoding step, against plain SDPA of the same round."""
    rows = []
    for prompt in options.prompts:
        query, key, value = _tensors(options, prompt)
        plain = functools.partial(F.scaled_dot_product_attention, query, key, value, is_causal=True)
        cases: dict[str, Callable[[], Any]] = {"plain SDPA": plain}
        for name in KINDS:
            cases[name] = functools.partial(_read, make_policy(name, 0.2), query, key, value)
        rows += _rounds(f"prompt of {prompt}", cases, options)
        for budget in options.budgets:
            rows += _rounds(f"step over {budget:.0%} of {prompt}", _steps(options, prompt, budget), options)
            cases = _model_steps(options, prompt, budget)
            rows += _rounds(f"model's step over {budget:.0%} of {prompt}", cases, options)
    return pd.DataFrame(rows)


def _tensors(options: argparse.Namespace, tokens: int, batch: int = 1) -> list[Tensor]:
    torch.manual_seed(0)
    shape = (batch, options.heads, tokens, options.head_size)
    kind = {"dtype": getattr(torch, options.dtype), "device": options.device}
    return [torch.randn(shape, **kind) for _ in range(3)]


def _read(policy: CachePolicy, query: Tensor, key: Tensor, value: Tensor) -> BudgetLayer:
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


def _steps(options: argparse.Namespace, prompt: int, budget: float) -> dict[str, Callable[[], Any]]:
    kept = _tensors(options, max(1, int(budget * prompt)), options.batch)
    new = _tensors(options, 1, options.batch)

    def plain() -> None:
        for _ in range(options.steps):
            F.scaled_dot_product_attention(new[0], kept[1], kept[2])

    def decode(layer: BudgetLayer) -> None:
        for _ in range(options.steps):
            _feed(layer, *new)

    cases: dict[str, Callable[[], Any]] = {"plain SDPA": plain}
    for name in KINDS:
        layer = _read(make_policy(name, budget), *_tensors(options, prompt, options.batch))
        cases[name] = functools.partial(decode, layer)
    return cases


@torch.inference_mode()
def _model_steps(options: argparse.Namespace, prompt: int, budget: float) -> dict[str, Callable[[], Any]]:
    model = _model(options)
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
def _rounds(
    what: str, cases: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> list[dict[str, Any]]:
    calls = {name: functools.partial(timed, run, options.device) for name, run in cases.items()}
    laps = in_rounds(calls, rounds=options.repeats, what=what)
    seconds = {name: [lap.wall for lap in own] for name, own in laps.items()}
    base = next(iter(seconds.values()))
    return [
        {"what": what, "cache": name, "ratio": median_ratio(own, base), "seconds": median(own)}
        for name, own in seconds.items()
    ]


def memory(options: argparse.Namespace) -> pd.DataFrame:
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


Prompt = Callable[[str, argparse.Namespace, int], Callable[[], Any]]


def _layer_prompt(name: str, options: argparse.Namespace, tokens: int) -> Callable[[], Any]:
    inputs = _tensors(options, tokens)
    if name == "plain SDPA":
        return functools.partial(F.scaled_dot_product_attention, *inputs, is_causal=True)
    return functools.partial(_read, make_policy(name, 0.2), *inputs)


def _model_prompt(name: str, options: argparse.Namespace, tokens: int) -> Callable[[], Any]:
    model = _model(options)
    cache = DynamicCache() if name == "plain SDPA" else BudgetCache(model, make_policy(name, 0.2))
    ids = torch.ones(1, tokens, dtype=torch.long, device=options.device)
    return functools.partial(model, ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _peak(make: Prompt, name: str, options: argparse.Namespace) -> int:
    if options.device == "cuda":
        with torch.inference_mode():
            run = make(name, options, options.memory_prompt)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            output = run()
            torch.cuda.synchronize()
            del output
        return torch.cuda.max_memory_allocated() - held
    return peak_of_a_fork(functools.partial(_prepare, make, name, options))


def _prepare(make: Prompt, name: str, options: argparse.Namespace) -> Callable[[], Any]:
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    make(name, options, 64)()  # libraries come up before memory is counted
    return make(name, options, options.memory_prompt)


MODULE = nn.Identity()
TABLES: dict[str, Callable[[argparse.Namespace], pd.DataFrame]] = {
    "memory": memory,  # first, in small processes
    "operators": operators,
    "generation": generation,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    has_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    prompts = [2048, 8192, *([32768] if has_cuda else [])]
    parser.add_argument("--prompts", type=int, nargs="+", default=prompts, help="tokens")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.5, 1.0])
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder of the results")
    parser.add_argument("--label", default="", help="ends the files' names, beside those of other settings")
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if has_cuda else "float32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--shape", choices=SHAPES, help="of the model; a small cache-bound one by default")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--memory-prompt", type=int, default=16384, help="tokens")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--steps", type=int, default=32, help="tokens decoded")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=TABLES, nargs="+", default=list(TABLES))
    options = parser.parse_args(arguments)
    if min(options.prompts) < 2 or not all(0 < budget <= 1 for budget in options.budgets):
        parser.error(f"--prompts {options.prompts}, --budgets {options.budgets}: expected tokens, fractions")
    return options


def main(arguments: list[str]) -> None:
    """Make, print and write the tables."""
    options = parse(arguments)
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        # glibc reads its settings only when a process starts.
        os.execve(sys.executable, [sys.executable, __file__, *arguments], {**os.environ, **KEEP_MEMORY})
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    what = (
        f"Model: {options.shape or 'cache-bound'}; operators: {options.heads} heads of {options.head_size}; "
        f"{options.dtype}, {options.device}, {options.threads} threads, batch {options.batch} (one row for "
        f"prompts of one layer), {options.steps} decoded tokens, "
        f"medians of {options.repeats} rounds."
    )
    for kind in options.only:
        table = TABLES[kind](options)
        name = f"{kind}_{options.label}" if options.label else kind
        text = f"{markdown(table)}\n\n{what}\n"
        atomic_write(options.out / f"kv_cache_{name}.csv", table.to_csv(index=False))
        atomic_write(options.out / f"kv_cache_{name}.md", text)
        settings = {key: str(value) for key, value in vars(options).items()}
        write_json(options.out / f"kv_cache_{name}.json", {"parameters": settings, **current_provenance()})
        print(f"\n{name}\n\n{text}")


if __name__ == "__main__":
    main(sys.argv[1:])
