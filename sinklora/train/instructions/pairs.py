"""What a row of a source gives: an instruction with its output, or the reason why it gives none."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pair:
    """`id`: of the row in its source; `document`: the name of the instruction's text, "" without one."""

    instruction: str
    output: str
    id: str
    document: str = ""


@dataclass(frozen=True)
class Unusable:
    """A whole row of which no example can be made, and why."""

    reason: str


def field(row: Mapping[str, Any], name: str, kind: type, place: str) -> Any:
    """A field of a row; ValueError with its place where it is missing or of another type."""
    if name not in row:
        raise ValueError(f"{place}: no {name!r}; there are {', '.join(map(repr, row)) or 'no fields'}")
    if not isinstance(row[name], kind) or (kind is int and isinstance(row[name], bool)):
        raise ValueError(f"{place}: {name!r} is {row[name]!r:.80}, expected {kind.__name__}")
    return row[name]


def text_hash(*texts: str) -> str:
    """16 hex digits for texts that have no other name."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
