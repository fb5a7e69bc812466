"""A training step of a real model by this checkout and by another one, as ratios of the same rounds (CPU).

    git worktree add ../before 50b058b
    python benchmarks/training_against.py --against ../before --out out/benchmarks

In each round every checkout takes steps by every pattern, one after the other, each in a process of its own,
so that a busy machine slows all of them: LoRA+, checkpointing, bfloat16, as `sinklora train` of that checkout
takes them. Weights are random, of the model's shape: time does not depend on their values. Ratios are of the
same round, medians of all; `ideal` is the ratio of the FLOPs that the patterns need here. Each round is kept
under `--runs`, known by the sources of both checkouts: a stopped benchmark goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pandas as pd
import typer
from pydantic import AfterValidator
from script_options import CORES, OUT, RUNS, OutFolder, Repeats, RunsFolder, Threads, script, settings_of
from table_files import write_table
from tqdm import tqdm

from sinklora.attention.patterns import PATTERNS
from sinklora.evaluate.memory import KEEP_MEMORY
from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepSpec
from sinklora.evaluate.timing import median_ratio
from sinklora.pretrained.fetch import model_path
from sinklora.records.checks import Count, Distinct, check_fields, one_of
from sinklora.records.files import contents_hash
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import remember
from sinklora.records.tables import markdown

HERE = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name("time_step.py")


def _is_checkout(folder: Path | None) -> Path | None:
    if folder is not None and not (folder / "sinklora" / "__init__.py").is_file():
        raise ValueError("the folder of a checkout, with sinklora/ in it")
    return folder


@dataclass(frozen=True)
class AgainstOptions:
    """What is measured, beside which checkout, and where its table goes."""

    against: Annotated[
        Path | None,
        AfterValidator(_is_checkout),
        typer.Option(help="folder of another checkout; without it: this one alone"),
    ] = None
    model: Annotated[str, typer.Option(help="a model's name, or its folder")] = "smollm2-135m"
    contexts: Annotated[Distinct[Count], typer.Option(help="tokens, separated by commas")] = (16384,)
    patterns: Annotated[
        Distinct[Annotated[str, one_of(PATTERNS)]],
        typer.Option(help=f"beside sf, separated by commas: {', '.join(PATTERNS)}"),
    ] = ("full",)
    repeats: Repeats = 3
    steps: Annotated[Count, typer.Option(help="timed in each process, after one to warm up")] = 1
    threads: Threads = CORES
    runs: RunsFolder = RUNS
    out: OutFolder = OUT

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def checkouts(self) -> dict[str, Path]:
        """Folders of "this" checkout and, where there is one, of the "other"."""
        return {"this": HERE} | ({} if self.against is None else {"other": self.against.resolve()})

    @property
    def compared_patterns(self) -> list[str]:
        """The patterns, the one that all are compared with first."""
        return list(dict.fromkeys(["sf", *self.patterns]))


def time_steps(checkout: Path, spec: dict[str, Any], steps: int, threads: int) -> list[float]:
    """Seconds of steps in a process that imports sinklora from `checkout`; RuntimeError where it fails."""
    environment = {**os.environ, **KEEP_MEMORY, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-W", "ignore", str(SCRIPT), json.dumps(spec), str(steps)]
    done = subprocess.run(command, cwd=checkout, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the step of {spec} in {checkout.name} failed:\n{done.stderr.strip()[-2000:]}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def step_of(options: AgainstOptions, context: int, pattern: str) -> dict[str, Any]:
    """The fields of a StepSpec; `fused` is how this checkout trains a frozen base on the CPU."""
    folder = Path(model_path(options.model))
    shape = str(folder.resolve()) if folder.is_dir() else options.model
    return {"shape": shape, "context": context, "pattern": pattern, "fused": True}


def measure_round(options: AgainstOptions, context: int) -> list[list[float]]:
    """Seconds of a step of every pattern, by checkout: the median of each process."""
    return [
        [
            median(time_steps(folder, step_of(options, context, name), options.steps, options.threads))
            for name in options.compared_patterns
        ]
        for folder in options.checkouts.values()
    ]


def measure(options: AgainstOptions, context: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every round, by checkout ("this", "other") and pattern."""
    known = current_provenance()
    key = {
        "training_against": {
            name: contents_hash(folder / "sinklora") for name, folder in options.checkouts.items()
        },
        "context": context,
        "options": {name: getattr(options, name) for name in ("model", "steps", "threads")}
        | {"patterns": options.compared_patterns},
        **{part: known[part] for part in ("versions", "hardware")},
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for count in tqdm(range(options.repeats), desc=f"{context} tokens", disable=None):
        work = partial(measure_round, options, context)
        round_seconds = remember(
            key | {"round": count}, work, runs=options.runs, prefix="against", name="seconds"
        )
        for name, own in zip(options.checkouts, round_seconds, strict=True):
            for pattern, value in zip(options.compared_patterns, own, strict=True):
                seconds.setdefault((name, pattern), []).append(value)
    return seconds


def make_table(
    options: AgainstOptions, rounds: dict[int, dict[tuple[str, str], list[float]]]
) -> pd.DataFrame:
    """A row for each length, checkout and pattern."""
    rows = []
    for context, seconds in rounds.items():
        flops = {
            name: estimate(StepSpec(**step_of(options, context, name))).needed_flops
            for name in options.compared_patterns
        }
        for (checkout, pattern), own in seconds.items():
            sf, here = seconds[checkout, "sf"], seconds["this", pattern]
            ratio, ideal = median_ratio(own, sf), flops[pattern] / flops["sf"]
            rows.append(
                {
                    "tokens": context,
                    "checkout": options.checkouts[checkout].name if checkout == "other" else "this",
                    "pattern": pattern,
                    "seconds": median(own),
                    "seconds (least)": min(own),
                    "seconds (most)": max(own),
                    "time, ratio to sf": ratio,
                    "ideal ratio (FLOPs)": ideal,
                    "off the ideal (%)": 100 * (ratio / ideal - 1),
                    "time, ratio to this checkout": median_ratio(own, here),
                }
            )
    return pd.DataFrame(rows)


def main(options: AgainstOptions) -> None:
    """Measure what is missing, write and print the table."""
    table = make_table(options, {context: measure(options, context) for context in options.contexts})
    what = (
        f"{options.model}, {options.threads} threads, LoRA+, checkpointing, bfloat16 autocast, medians of "
        f"{options.repeats} rounds of {options.steps} steps."
    )
    text = f"{markdown(table)}\n\n{what}\n"
    sources = {folder.name: contents_hash(folder / "sinklora") for folder in options.checkouts.values()}
    write_table(options.out, "training_against", table, text, settings_of(options), sources=sources)


application = script(main, AgainstOptions)

if __name__ == "__main__":
    application()
