"""Time, peak memory and FLOPs of a whole training step as ratios to LoRA+ with full attention.

    python benchmarks/training.py --shape base --contexts 2048,8192 --out out/benchmarks

Each case runs in a process of its own and is kept under `--runs`, so that a stopped benchmark goes on.
`ideal` is the ratio of the FLOPs that the steps need; the prediction runs the same code without values.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import torch
import typer
from script_options import (
    CORES,
    DEVICE,
    HAS_CUDA,
    OUT,
    RUNS,
    Device,
    OutFolder,
    Repeats,
    RunsFolder,
    Threads,
    script,
    settings_of,
)
from table_files import write_table

from sinklora.evaluate.step_spec import StepSpec
from sinklora.hf.model_shapes import SHAPES
from sinklora.records.checks import Count, Distinct, Positive, check_fields, one_of
from sinklora.records.tables import markdown
from sinklora.reproduction.efficiency.claims import training_cost_claims
from sinklora.reproduction.efficiency.study import (
    BASELINE,
    EAGER_STEP,
    SF,
    EfficiencyStudy,
    compare,
    efficiency_table,
)
from sinklora.reproduction.report.claims import told_together

# By what the command line calls them: titles hold commas.
METHODS = {
    "full": "full fine-tuning",
    "lora": BASELINE,
    "lora_s2": "LoRA+, S²-Attn",
    "lora_sf": SF,
    "lora_eager": EAGER_STEP,
}


@dataclass(frozen=True)
class TrainingOptions:
    """What is measured, and where its table goes."""

    shape: Annotated[str, typer.Option(help=f"{', '.join(SHAPES)}, or a folder")] = (
        "llama2-7b" if HAS_CUDA else "base"
    )
    contexts: Annotated[Distinct[Count], typer.Option(help="tokens, separated by commas")] = (
        (4096, 8192, 16384, 32768, 65536) if HAS_CUDA else (2048, 4096, 8192)
    )
    methods: Annotated[
        Distinct[Annotated[str, one_of(METHODS)]],
        typer.Option(help=f"separated by commas, lora and lora_sf among them: {', '.join(METHODS)}"),
    ] = tuple(METHODS)
    schedules: Annotated[
        tuple[str, ...], typer.Option(help="of patterns over a training, separated by commas; may be none")
    ] = ("sf_then_full",)
    device: Device = DEVICE
    limit_gib: Annotated[Positive, typer.Option(help="leave out steps that are predicted to need more")] = (
        130.0 if HAS_CUDA else 4.0
    )
    repeats: Repeats = 3
    threads: Threads = CORES
    runs: RunsFolder = RUNS
    out: OutFolder = OUT

    def __post_init__(self) -> None:
        check_fields(self)


def main(options: TrainingOptions) -> None:
    """Measure what is missing, write and print the table."""
    study = EfficiencyStudy(
        StepSpec(options.shape, options.contexts[0], device=options.device),
        options.contexts,
        options.limit_gib,
        tuple(METHODS[name] for name in options.methods),
        options.schedules,
        options.repeats,
    )
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # for the processes that measure
    torch.set_num_threads(options.threads)
    rows = compare(study, runs=options.runs)
    table = efficiency_table(rows, options.schedules)
    text = f"{markdown(table)}\n\n{told_together(training_cost_claims(rows, options.shape))}\n"
    write_table(options.out, "training", table, text, settings_of(options))


application = script(main, TrainingOptions)

if __name__ == "__main__":
    application()
