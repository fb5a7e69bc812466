"""A real language model: caches beside transformers' own, and training steps, as ratios of one run.

    python benchmarks/real_model.py --out out/benchmarks

`caches`: prompt and decoding with transformers' DynamicCache, its StaticCache, and ours. In each round every
cache reads the same tokens and decodes, so that a busy machine slows all of them; ratios are of the same
round, medians of all, with the range of decoding. "StaticCache (budget)" holds as many tokens as the budget
keeps: it cannot read the whole prompt, so it reads that many, and its prompt has no ratio. Peak memory is
what prompt and decoding add, each case in its own process; operators are those that the model dispatches,
views aside, over layers. `training`: LoRA+ steps with checkpointing by SF-Attn and the other `--patterns`, on
the CPU in turn; `ideal` is the ratio of the FLOPs that they need. `compiled` (with `--compile`): decoding by
the model as it is and by torch.compile(mode="reduce-overhead"), which captures CUDA graphs on a GPU. Each
cell is kept under `--runs`: a stopped benchmark goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
from kept_memory import start_anew_unless_kept
from real_model_caches import caches
from real_model_compiled import compiled
from real_model_options import STATIC, RealModelOptions
from script_options import script, settings_of
from table_files import write_table

from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepSpec
from sinklora.evaluate.training_step import compared_costs
from sinklora.pretrained.fetch import model_path
from sinklora.pretrained.loading import fast_dtype
from sinklora.records.tables import markdown


def training(options: RealModelOptions) -> pd.DataFrame:
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
            for name in options.compared_patterns
        }
        compared = compared_costs(list(specs.values()), runs=options.runs, rounds=options.repeats)
        costs = dict(zip(specs, compared, strict=True))
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


MAKERS: dict[str, Callable[[RealModelOptions], pd.DataFrame]] = {
    "caches": caches,
    "training": training,
    "compiled": compiled,
}


def main(options: RealModelOptions) -> None:
    """Measure what is missing, write and print the tables."""
    start_anew_unless_kept()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes that measure training
    if options.dtype == "fastest":
        options = replace(options, dtype=str(fast_dtype(options.device)).removeprefix("torch."))
    what = (
        f"{options.model}, {options.dtype}, {options.device}, {options.threads} threads, budget "
        f"{options.budget:.0%}, {options.steps} decoded tokens a row, medians of {options.repeats} rounds. "
        f"{STATIC} holds and reads as many tokens as the budget keeps. Training: LoRA+, checkpointing, "
        "bfloat16 autocast."
    )
    for kind in options.tables:
        table = MAKERS[kind](options)
        text = f"{markdown(table)}\n\n{what}\n"
        write_table(options.out, f"real_model_{kind}", table, text, settings_of(options))


application = script(main, RealModelOptions)

if __name__ == "__main__":
    application()
