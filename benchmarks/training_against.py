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

import argparse
import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
from tqdm import tqdm

from sinklora.attention.patterns import PATTERNS
from sinklora.evaluate.memory import KEEP_MEMORY
from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepSpec
from sinklora.evaluate.timing import median_ratio
from sinklora.pretrained.fetch import model_path
from sinklora.records.files import atomic_write, file_hash, write_json
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import remember
from sinklora.records.tables import markdown

HERE = Path(__file__).resolve().parents[1]
DECIDE = ("model", "contexts", "patterns", "repeats", "steps", "threads")
SCRIPT = Path(__file__).with_name("time_step.py")


def sources_hash(checkout: Path) -> str:
    """SHA-256 over all sources of the package in a checkout."""
    package = checkout / "sinklora"
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp"))
    told = [f"{path.relative_to(package).as_posix()} {file_hash(path)}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def time_steps(checkout: Path, spec: dict[str, Any], steps: int, threads: int) -> list[float]:
    """Seconds of steps in a process that imports sinklora from `checkout`; RuntimeError where it fails."""
    environment = {**os.environ, **KEEP_MEMORY, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-W", "ignore", str(SCRIPT), json.dumps(spec), str(steps)]
    done = subprocess.run(command, cwd=checkout, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the step of {spec} in {checkout.name} failed:\n{done.stderr.strip()[-2000:]}")
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def step_of(options: argparse.Namespace, context: int, pattern: str) -> dict[str, Any]:
    """The fields of a StepSpec; `fused` is how this checkout trains a frozen base on the CPU."""
    folder = Path(model_path(options.model))
    shape = str(folder.resolve()) if folder.is_dir() else options.model
    return {"shape": shape, "context": context, "pattern": pattern, "fused": True}


def measure_round(options: argparse.Namespace, context: int) -> list[list[float]]:
    """Seconds of a step of every pattern, by checkout: the median of each process."""
    return [
        [
            median(time_steps(folder, step_of(options, context, name), options.steps, options.threads))
            for name in options.patterns
        ]
        for folder in options.checkouts.values()
    ]


def measure(options: argparse.Namespace, context: int) -> dict[tuple[str, str], list[float]]:
    """Seconds of every round, by checkout ("this", "other") and pattern."""
    known = current_provenance()
    key = {
        "training_against": {name: sources_hash(folder) for name, folder in options.checkouts.items()},
        "context": context,
        "options": {name: getattr(options, name) for name in ("model", "patterns", "steps", "threads")},
        **{part: known[part] for part in ("versions", "hardware")},
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for count in tqdm(range(options.repeats), desc=f"{context} tokens", disable=None):
        work = partial(measure_round, options, context)
        found = remember(key | {"round": count}, work, runs=options.runs, prefix="against", name="seconds")
        for name, own in zip(options.checkouts, found, strict=True):
            for pattern, value in zip(options.patterns, own, strict=True):
                seconds.setdefault((name, pattern), []).append(value)
    return seconds


def make_table(
    options: argparse.Namespace, rounds: dict[int, dict[tuple[str, str], list[float]]]
) -> pd.DataFrame:
    """A row for each length, checkout and pattern."""
    rows = []
    for context, seconds in rounds.items():
        flops = {
            name: estimate(StepSpec(**step_of(options, context, name))).needed_flops
            for name in options.patterns
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


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--against", type=Path, help="folder of another checkout; without it: this one alone")
    parser.add_argument("--model", default="smollm2-135m", help="a model's name, or its folder")
    parser.add_argument("--contexts", type=int, nargs="+", default=[16384], help="tokens")
    parser.add_argument("--patterns", choices=PATTERNS, nargs="+", default=["full"], help="beside sf")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--steps", type=int, default=1, help="timed in each process, after one to warm up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="folder of the results")
    options = parser.parse_args(arguments)
    if min(*options.contexts, options.repeats, options.steps, options.threads) < 1:
        parser.error(f"expected counts of at least 1, got {vars(options)}")
    options.checkouts = {"this": HERE}
    if options.against is not None:
        other = options.against.resolve()
        if not (other / "sinklora" / "__init__.py").is_file():
            parser.error(f"--against={options.against}: no sinklora/ there; give the folder of a checkout")
        options.checkouts["other"] = other
    options.patterns = list(dict.fromkeys(["sf", *options.patterns]))  # compared with
    return options


def main(arguments: list[str]) -> None:
    """Measure what is missing, write and print the table."""
    options = parse(arguments)
    table = make_table(options, {context: measure(options, context) for context in options.contexts})
    what = (
        f"{options.model}, {options.threads} threads, LoRA+, checkpointing, bfloat16 autocast, medians of "
        f"{options.repeats} rounds of {options.steps} steps."
    )
    text = f"{markdown(table)}\n\n{what}\n"
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out / "training_against.csv", table.to_csv(index=False))
    atomic_write(options.out / "training_against.md", text)
    settings = {name: str(value) for name, value in vars(options).items() if name in DECIDE}
    sources = {options.checkouts[name].name: sources_hash(x) for name, x in options.checkouts.items()}
    record = {"parameters": settings, "sources": sources, **current_provenance()}
    write_json(options.out / "training_against.json", record)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
