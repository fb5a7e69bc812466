"""A real language model: caches beside transformers' own, and training steps, as ratios of one run.

    python benchmarks/real_model.py --out out/benchmarks

`caches`: prompt and decoding with transformers' DynamicCache, its StaticCache, and ours. In each round every
cache reads the same tokens and decodes, so that a busy machine slows all of them; ratios are of the same
round, medians of all, with the range of decoding. "StaticCache (budget)" holds as many tokens as the budget
keeps: it cannot read the whole prompt, so it reads that many, and its prompt has no ratio. Peak memory is
what prompt and decoding add, each case in its own process; operators are those that the model dispatches,
views aside, over layers. `training`: LoRA+ steps with checkpointing by SF-Attn and the other `--patterns`;
`ideal` is the ratio of the FLOPs that they need. `compiled` (with `--compile`): decoding by the model as it
is and by torch.compile(mode="reduce-overhead"), which captures CUDA graphs on a GPU. Each cell is kept under
`--runs`: a stopped benchmark goes on.
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
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from sinklora.attention.patterns import PATTERNS
from sinklora.cache.policies import POLICIES, make_policy
from sinklora.evaluate import generation_cost
from sinklora.evaluate.memory import KEEP_MEMORY, peak_of_a_fork
from sinklora.evaluate.operator_count import operators_per_layer
from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepSpec
from sinklora.evaluate.timing import in_rounds, median_ratio
from sinklora.evaluate.training_step import measured
from sinklora.hf.budget_cache import BudgetCache
from sinklora.pretrained.fetch import model_path
from sinklora.pretrained.loading import fast_dtype, load
from sinklora.records.files import atomic_write, write_json
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import remember
from sinklora.records.tables import markdown
from sinklora.reproduction.names import CACHES as TITLES

DYNAMIC, STATIC = "DynamicCache", "StaticCache (budget)"
OURS = {"Full" if name == "full" else TITLES.get(name, name): name for name in POLICIES}
BOUNDED = tuple(label for label, name in OURS.items() if POLICIES[name].bounded)
CACHES = (DYNAMIC, STATIC, *OURS)
PAPERS = [DYNAMIC, STATIC, "Full", "H2O", "Local", "StreamingLLM"]  # what the paper compares, and theirs
COUNTED = 128  # tokens of the prompt whose operators are counted: enough for the budget to evict


def kept_tokens(options: argparse.Namespace, prompt: int) -> int:
    """How many tokens the budget keeps of a prompt."""
    return max(1, int(options.budget * prompt))


def make_cache(name: str, model: PreTrainedModel, options: argparse.Namespace, prompt: int) -> Cache:
    """An empty cache of a name of CACHES, for a prompt of so many tokens."""
    if name == DYNAMIC:
        return DynamicCache()
    if name == STATIC:
        return StaticCache(model.config, kept_tokens(options, prompt) + options.steps)
    return BudgetCache(model, make_policy(OURS[name], options.budget if name in BOUNDED else None))


def load_model(options: argparse.Namespace) -> PreTrainedModel:
    """The model in the dtype of the options."""
    torch.set_num_threads(options.threads)
    return load(options.model, dtype=getattr(torch, options.dtype), device=options.device).model


def generate(
    name: str, model: PreTrainedModel, options: argparse.Namespace, batch: int, prompt: int
) -> list[float]:
    """Seconds of the prompt, and of decoding `options.steps` tokens a row."""
    tokens = kept_tokens(options, prompt) if name == STATIC else prompt
    ids = torch.arange(tokens, device=model.device).expand(batch, -1) % model.config.vocab_size
    make = functools.partial(make_cache, name, model, options, prompt)
    cost = generation_cost.generate(model, make, ids, options.steps)
    return [cost.prompt, cost.decoding]


def measure_rounds(options: argparse.Namespace, batch: int, prompt: int) -> dict[str, list[list[float]]]:
    """Seconds of every round by cache; one round to warm up is left out."""
    model = load_model(options)
    cases = {n: functools.partial(generate, n, model, options, batch, prompt) for n in options.caches}
    return in_rounds(cases, rounds=options.repeats, what=f"{batch} x {prompt}")


def measure_peak(options: argparse.Namespace, batch: int, prompt: int, name: str) -> int:
    """Bytes that prompt and decoding add to what the loaded model takes."""
    if options.device == "cuda":
        model = load_model(options)
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


def count_operators(options: argparse.Namespace, name: str) -> list[float]:
    """Operators per layer of a prompt and of a decoding step."""
    model = load_model(options)
    make = functools.partial(make_cache, name, model, options, COUNTED)
    tokens = kept_tokens(options, COUNTED) if name == STATIC else COUNTED
    return list(operators_per_layer(model, make, prompt_tokens=tokens, steps=options.steps))


def cell(options: argparse.Namespace, compute: Callable[..., Any], *arguments: Any) -> Any:
    """What `compute(options, *arguments)` gives, measured once for these options, versions and machine."""
    known = current_provenance()
    decide = ("model", "dtype", "device", "threads", "budget", "steps", "repeats", "caches")
    key = {
        "real_model": compute.__name__,
        "arguments": list(arguments),
        "options": {name: getattr(options, name) for name in decide},
        **{name: known[name] for name in ("commit", "versions", "hardware")},
    }
    return remember(key, lambda: compute(options, *arguments), runs=options.runs, prefix="real", name="cell")


def caches(options: argparse.Namespace) -> pd.DataFrame:
    """A row for each batch, prompt and cache. Memory first: its processes are forked."""
    settings = [(batch, prompt) for batch in options.batches for prompt in options.prompts]
    peaks = {(*s, name): cell(options, measure_peak, *s, name) for s in settings for name in options.caches}
    operators = {name: cell(options, count_operators, name) for name in options.caches}
    rows = []
    for batch, prompt in settings:
        rounds = cell(options, measure_rounds, batch, prompt)
        read, decoded = ({name: [lap[i] for lap in own] for name, own in rounds.items()} for i in (0, 1))
        base = peaks[batch, prompt, DYNAMIC]
        for name in options.caches:
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
                    "times Local": median_ratio(decoded["Local"], decoded[name]),
                    "peak (MiB)": peak / 2**20,
                    "peak, ratio": peak / base,
                    "operators a layer, prompt": operators[name][0],
                    "operators a layer, step": operators[name][1],
                }
            )
    return pd.DataFrame(rows)


def measure_compiled(options: argparse.Namespace, batch: int, prompt: int) -> dict[str, list[list[float]]]:
    """Seconds of every round by cache, eager and compiled; the round that compiles is left out."""
    model = load_model(options)
    torch.compiler.reset()  # the graphs of another prompt do not count against the limit of this one
    graph = torch.compile(model.__call__, mode="reduce-overhead", dynamic=False)
    ids = torch.arange(prompt, device=model.device).expand(batch, -1) % model.config.vocab_size

    def run(name: str, decode: Callable[..., Any] | None) -> list[float]:
        make = functools.partial(make_cache, name, model, options, prompt)
        cost = generation_cost.generate(model, make, ids, options.steps, decode=decode)
        return [cost.prompt, cost.decoding]

    bounded = [name for name in BOUNDED if name in options.caches]
    cases = {name: functools.partial(run, name, None) for name in (DYNAMIC, *bounded)}
    cases |= {f"{name}, compiled": functools.partial(run, name, graph) for name in bounded}
    return in_rounds(cases, rounds=options.repeats, what=f"{batch} x {prompt}, compiled")


def compiled(options: argparse.Namespace) -> pd.DataFrame:
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


def training(options: argparse.Namespace) -> pd.DataFrame:
    """Training steps by SF-Attn and other patterns on the model's shape."""
    rows = []
    for context in options.contexts:
        specs = {
            name: StepSpec(
                model_path(options.model),
                context,
                name,
                device=options.device,
                fused=options.device == "cpu" and options.dtype == "bfloat16",
            )
            for name in options.patterns
        }
        costs = {
            name: measured(spec, runs=options.runs, repeats=options.repeats) for name, spec in specs.items()
        }
        flops = {name: estimate(spec).needed_flops for name, spec in specs.items()}
        for name, cost in costs.items():
            seconds, own = cost.seconds or float("nan"), costs["sf"].seconds or float("nan")
            ratio, ideal = seconds / own, flops[name] / flops["sf"]
            rows.append(
                {
                    "tokens": context,
                    "pattern": name,
                    "seconds": seconds,
                    "time, ratio to sf": ratio,
                    "ideal ratio (FLOPs)": ideal,
                    "off the ideal (%)": 100 * (ratio / ideal - 1),
                    "peak (GiB)": (cost.peak_bytes or float("nan")) / 2**30,
                    "TFLOP/s": flops[name] / seconds / 1e12,
                }
            )
    return pd.DataFrame(rows)


TABLES: dict[str, Callable[[argparse.Namespace], pd.DataFrame]] = {
    "caches": caches,
    "compiled": compiled,
    "training": training,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; `--quick` is a run of seconds, to see that all works."""
    quick = "--quick" in arguments
    has_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="other defaults: tiny sizes, one round")
    parser.add_argument("--model", default="smollm2-135m", help="a model's name, or its folder")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[48] if quick else [2048, 7936], help="tokens"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1] if quick else [1, 8], help="rows")
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[64] if quick else [16384], help="of training"
    )
    parser.add_argument(
        "--patterns", choices=PATTERNS, nargs="+", default=["full"], help="of training, beside sf"
    )
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument(
        "--caches", choices=CACHES, nargs="+", default=PAPERS, help=f"beside {DYNAMIC} and Local"
    )
    parser.add_argument("--steps", type=int, default=3 if quick else 64, help="tokens decoded")
    parser.add_argument("--repeats", type=int, default=1 if quick else 3, help="rounds")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="default: what is fast here")
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--only", choices=TABLES, nargs="+", default=["caches", "training"])
    parser.add_argument("--compile", action="store_true", help="the table `compiled` as well")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder of the results")
    options = parser.parse_args(arguments)
    if (
        not 0 < options.budget <= 1
        or min(*options.prompts, *options.batches, options.steps, options.repeats) < 1
    ):
        parser.error(f"expected a budget in (0, 1] and counts of at least 1, got {vars(options)}")
    options.caches = [name for name in CACHES if name in {DYNAMIC, "Local", *options.caches}]  # compared with
    options.patterns = list(dict.fromkeys(["sf", *options.patterns]))  # compared with
    if options.compile and "compiled" not in options.only:
        options.only.append("compiled")
    if options.dtype is None:
        options.dtype = "bfloat16" if has_cuda else str(fast_dtype()).removeprefix("torch.")
    return options


def main(arguments: list[str]) -> None:
    """Measure what is missing, write and print the tables."""
    options = parse(arguments)
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        # glibc reads its settings only when a process starts.
        os.execve(sys.executable, [sys.executable, __file__, *arguments], {**os.environ, **KEEP_MEMORY})
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes that measure training
    options.out.mkdir(parents=True, exist_ok=True)
    what = (
        f"{options.model}, {options.dtype}, {options.device}, {options.threads} threads, budget "
        f"{options.budget:.0%}, {options.steps} decoded tokens a row, medians of {options.repeats} rounds. "
        f"{STATIC} holds and reads as many tokens as the budget keeps. Training: LoRA+, checkpointing, "
        "bfloat16 autocast."
    )
    settings = {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)}
    for kind in options.only:
        table = TABLES[kind](options)
        text = f"{markdown(table)}\n\n{what}\n"
        atomic_write(options.out / f"real_model_{kind}.csv", table.to_csv(index=False))
        atomic_write(options.out / f"real_model_{kind}.md", text)
        write_json(options.out / f"real_model_{kind}.json", {"parameters": settings, **current_provenance()})
        print(f"\n{kind}\n\n{text}")


if __name__ == "__main__":
    main(sys.argv[1:])
