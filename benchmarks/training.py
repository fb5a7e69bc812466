"""Time, peak memory and FLOPs of a whole training step as ratios to LoRA+ with full attention.

    python benchmarks/training.py --shape base --contexts 2048 8192 --out out/benchmarks

Each case runs in a process of its own and is kept under `--runs`, so that a stopped benchmark goes on.
`ideal` is the ratio of the FLOPs that the steps need; the prediction runs the same code without values.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from sinklora.evaluate.step_spec import StepSpec
from sinklora.hf.model_shapes import SHAPES
from sinklora.records.files import atomic_write, write_json
from sinklora.records.provenance import current_provenance
from sinklora.records.tables import markdown
from sinklora.reproduction.efficiency.claims import training_cost_claims
from sinklora.reproduction.efficiency.study import STEPS, EfficiencyStudy, compare, efficiency_table
from sinklora.reproduction.report.claims import told_together


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    has_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    contexts = [4096, 8192, 16384, 32768, 65536] if has_cuda else [2048, 4096, 8192]
    parser.add_argument(
        "--shape", default="llama2-7b" if has_cuda else "base", help=f"{', '.join(SHAPES)}, or a folder"
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=contexts, help="tokens")
    parser.add_argument("--methods", nargs="+", choices=list(STEPS), default=list(STEPS), metavar="METHOD")
    parser.add_argument("--schedules", nargs="*", default=["sf_then_full"])
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu")
    parser.add_argument("--limit-gib", type=float, default=130.0 if has_cuda else 4.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Measure what is missing, write and print the table."""
    options = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes that measure
    torch.set_num_threads(options.threads)
    study = EfficiencyStudy(
        StepSpec(options.shape, options.contexts[0], device=options.device),
        tuple(options.contexts),
        options.limit_gib,
        tuple(options.methods),
        tuple(options.schedules),
        options.repeats,
    )
    rows = compare(study, runs=options.runs)
    table = efficiency_table(rows, options.schedules)
    text = f"{markdown(table)}\n\n{told_together(training_cost_claims(rows, options.shape))}\n"
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out / "training.csv", table.to_csv(index=False))
    atomic_write(options.out / "training.md", text)
    settings = {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)}
    write_json(options.out / "training.json", {"parameters": settings, **current_provenance()})
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
