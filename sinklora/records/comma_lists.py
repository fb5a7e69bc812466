"""Several values in one option of a command line, separated by commas: `--seeds 0,1,2`."""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

# What is expected of a type, and how it is written.
WORDS: dict[Any, tuple[str, str]] = {
    int: ("whole numbers", "1,2,3"),
    float: ("numbers", "1,2,3"),
    str: ("texts", "a,b"),
}


def read_list(name: str, text: str, kind: Callable[[str], T]) -> list[T]:
    """The values of an option, of a type such as int or str; none from "".

    Raises ValueError that names the option, also for nothing between two commas.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    try:
        if "" in parts:
            raise ValueError
        return [kind(part) for part in parts]
    except ValueError:
        what, example = WORDS.get(kind, ("values", "a,b"))
        raise ValueError(f"{name}={text!r}: expected {what} separated by commas, as in {example}") from None
