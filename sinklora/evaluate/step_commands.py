"""The commands `estimate` and `measure`: a training step's cost. Nothing heavy is imported until they run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinklora.refusals import told_in_a_sentence

if TYPE_CHECKING:
    from sinklora.evaluate.step_spec import StepSpec

Shape = Annotated[
    str, typer.Argument(help="a model's shape (base, llama2-7b, …), a packaged model, or a model's folder")
]
Tokens = Annotated[int, typer.Argument(help="context, in tokens")]
PatternName = Annotated[
    str, typer.Argument(help="a pattern (full, sf, s2, …), or eager: all scores in memory")
]
Method = Annotated[str, typer.Option(help="what is trained: lora_plus or full")]
Batch = Annotated[int, typer.Option(help="rows")]
Checkpointing = Annotated[bool, typer.Option(help="recompute activations")]


@told_in_a_sentence
def estimate_command(
    shape: Shape,
    tokens: Tokens,
    pattern: PatternName,
    method: Method = "lora_plus",
    batch: Batch = 1,
    checkpointing: Checkpointing = True,
) -> None:
    """Predict peak memory and FLOPs of one training step, without a GPU: estimate llama2-7b 65536 sf"""
    spec = _step(shape, tokens, pattern, method, batch, checkpointing)
    from sinklora.evaluate.step_estimate import estimate

    cost = estimate(spec)
    typer.echo(
        f"{_describe(spec)}: {cost.peak_bytes / 2**30:.2f} GiB at its peak, "
        f"{cost.needed_flops / 1e12:.2f} TFLOP"
    )


@told_in_a_sentence
def measure_command(
    shape: Shape,
    tokens: Tokens,
    pattern: PatternName,
    method: Method = "lora_plus",
    batch: Batch = 1,
    checkpointing: Checkpointing = True,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    repeats: Annotated[int, typer.Option(help="timed steps", min=1)] = 3,
    runs: Annotated[Path, typer.Option(help="where measurements are kept")] = Path("runs"),
) -> None:
    """Take one training step and tell its seconds and peak memory: measure base 8192 sf

    What does not fit ends with exit code 1.
    """
    spec = _step(shape, tokens, pattern, method, batch, checkpointing, device=device)
    import torch

    from sinklora.evaluate.training_step import measured

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': torch sees no CUDA device here; measure on the cpu, or estimate")
    cost = measured(spec, runs=runs, repeats=repeats)
    if cost.peak_bytes is None or cost.seconds is None:
        typer.echo(f"{_describe(spec)}: does not fit")
        raise typer.Exit(1)
    typer.echo(f"{_describe(spec)}: {cost.peak_bytes / 2**30:.2f} GiB at its peak, {cost.seconds:.3f} s")


def _step(*values: Any, **named: Any) -> "StepSpec":
    """A StepSpec of these values; ValueError in one sentence for a wrong one, wherever it was found."""
    from sinklora.evaluate.step_spec import StepSpec

    try:
        return StepSpec(*values, **named)
    except (ValueError, TypeError) as error:
        raise ValueError(str(error)) from error


def _describe(spec: "StepSpec") -> str:
    return f"{spec.shape}, {spec.context} tokens, {spec.pattern}, {spec.method}, {spec.device}"
