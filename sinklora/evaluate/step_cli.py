"""A training step's cost: `python -m sinklora.evaluate.step_cli --estimate llama2-7b 65536 sf`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinklora.evaluate.step_estimate import estimate
from sinklora.evaluate.step_spec import StepSpec
from sinklora.evaluate.training_step import measured
from sinklora.train.spec import METHODS


def _describe(spec: StepSpec) -> str:
    return f"{spec.shape}, {spec.context} tokens, {spec.pattern}, {spec.method}, {spec.device}"


def main(
    estimate_of: Annotated[
        tuple[str, int, str] | None, typer.Option("--estimate", help="shape, tokens, pattern")
    ] = None,
    measure_of: Annotated[
        tuple[str, int, str] | None, typer.Option("--measure", help="shape, tokens, pattern")
    ] = None,
    method: Annotated[str, typer.Option(help=f"one of {', '.join(METHODS)}")] = "lora_plus",
    batch: Annotated[int, typer.Option(help="rows")] = 1,
    checkpointing: Annotated[bool, typer.Option(help="recompute activations")] = True,
    device: Annotated[str, typer.Option(help="of --measure: cpu or cuda")] = "cpu",
    repeats: Annotated[int, typer.Option(help="timed steps")] = 3,
    runs: Annotated[Path, typer.Option(help="where measurements are kept")] = Path("runs"),
) -> None:
    """Predict or measure the memory and time of one training step."""
    if (estimate_of is None) == (measure_of is None):
        raise typer.BadParameter("give either --estimate or --measure, as in --estimate llama2-7b 65536 sf")
    shape, context, pattern = estimate_of or measure_of or ("", 0, "")
    try:
        spec = StepSpec(shape, context, pattern, method, batch, checkpointing, device=device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if estimate_of:
        found = estimate(spec)
        typer.echo(
            f"{_describe(spec)}: {found.peak_bytes / 2**30:.2f} GiB at its peak, "
            f"{found.needed_flops / 1e12:.2f} TFLOP"
        )
        return
    cost = measured(spec, runs=runs, repeats=repeats)
    if cost.peak_bytes is None or cost.seconds is None:
        typer.echo(f"{_describe(spec)}: does not fit")
        raise typer.Exit(1)
    typer.echo(f"{_describe(spec)}: {cost.peak_bytes / 2**30:.2f} GiB at its peak, {cost.seconds:.3f} s")


if __name__ == "__main__":
    typer.run(main)
