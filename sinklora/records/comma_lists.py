"""Several values in one option of a command line, separated by commas: `--seeds 0,1,2`."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

WORDS: dict[Any, str] = {int: "whole numbers", float: "numbers"}


def read_list(name: str, text: str, kind: Callable[[str], T]) -> list[T]:
    """The values of an option, of a type such as int or str; none from "".

    Raises ValueError that names the option.
    """
    try:
        return [kind(part.strip()) for part in text.split(",")] if text else []
    except ValueError:
        what = WORDS.get(kind, "values")
        raise ValueError(f"{name}={text!r}: expected {what} separated by commas, as in 1,2,3") from None
