"""What several test modules need."""

from collections.abc import Iterable, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from typer.main import get_command

from sinklora.cli import application

__all__ = ["assert_close", "every_pair", "rest_slow", "understood"]

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


def rest_slow(cases: Iterable[Any], always: int = 1) -> list[Any]:
    """Cases of a parametrized test of which only the first few always run; the others are marked slow."""
    listed = list(cases)
    return listed[:always] + [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in listed[always:]
    ]


def _precise(numbers: Numbers) -> Tensor:
    if isinstance(numbers, Tensor):
        return numbers.detach().to("cpu", torch.float64)
    return torch.tensor(numbers, dtype=torch.float64)  # Python's numbers would become float32 on the way


def every_pair(*factors: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Cases in which each value of a factor meets each value of every other one.

    The first two factors, which should be the largest, are multiplied; the others are filled in. Values
    are hashable.
    """
    first, second, *others = map(list, factors)

    def pairs(case: tuple[Any, ...]) -> set[tuple[Any, ...]]:
        return set(combinations(enumerate(case), 2))

    left = {pair for case in product(first, second, *others) for pair in pairs(case)}
    cases = []
    for start in product(first, second):
        best = max(product([start], *others), key=lambda case: len(pairs((*start, *case[1:])) & left))
        cases.append((*start, *best[1:]))
        left -= pairs(cases[-1])
    assert not left, f"these do not meet, give the largest factors first: {left}"
    return cases


def understood(arguments: list[str]) -> bool:
    """True where the command line has this command with these options; else raises what it would say."""
    command: Any = get_command(application)
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(command.name, arguments)
    return True
