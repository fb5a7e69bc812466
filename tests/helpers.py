"""What several test modules need."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typer.main import get_command

from sinklora.cli import application

__all__ = ["assert_close", "understood"]

Numbers = Tensor | NDArray[np.generic] | Sequence[float] | float


def assert_close(actual: Numbers, expected: Numbers, atol: float, rtol: float = 0.0) -> None:
    """Shapes are equal and |actual - expected| <= atol + rtol * |expected| everywhere; NaN equals nothing."""
    actual, expected = _precise(actual), _precise(expected)
    if actual.shape != expected.shape:
        raise AssertionError(f"shapes differ: {list(actual.shape)} and {list(expected.shape)}")
    # Equal infinities differ by nothing, though their difference is NaN.
    difference = torch.where(actual == expected, 0.0, (actual - expected).abs())
    wrong = ~(difference <= atol + rtol * expected.abs())
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(wrong.sum())} of {wrong.numel()} differ by more than atol={atol:g}, rtol={rtol:g}: "
            f"max {difference.max().item():.3g}, mean {difference.mean().item():.3g}; "
            f"first at {first}: {actual[first].item():.9g}, expected {expected[first].item():.9g}"
        )


def _precise(numbers: Numbers) -> Tensor:
    return torch.as_tensor(numbers).detach().to("cpu", torch.float64)


def understood(arguments: list[str]) -> bool:
    """True where sinklora's command line has this command with these options; else raises its refusal."""
    command: Any = get_command(application)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(command.name, arguments)
    return True
