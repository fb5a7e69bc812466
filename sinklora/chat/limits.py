"""How much the page takes from a visitor, and keeps for one."""

from __future__ import annotations

from dataclasses import dataclass

from sinklora.records.checks import Count, Positive, check_fields


@dataclass(frozen=True)
class Limits:
    """`sessions` are kept, each for so many `minutes` after its last use.

    A document has at most so many bytes as a file and so many tokens as a text; a question so many
    characters. Raises ValueError or TypeError for what is not above 0.
    """

    sessions: Count = 4  # a browser keeps at most six connections, and each tab holds one
    minutes: Positive = 60.0
    document_bytes: Count = 20 * 2**20
    document_tokens: Count = 65_536
    question_characters: Count = 4000

    def __post_init__(self) -> None:
        check_fields(self)
