"""What a row of a source gives: an instruction with its output, or the reason why it gives none."""

import hashlib
from dataclasses import dataclass


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


def text_hash(*texts: str) -> str:
    """16 hex digits for texts that have no other name."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
