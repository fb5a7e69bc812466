"""What a conversation costs, in words."""

from __future__ import annotations

from sinklora.chat.costs import Cost
from sinklora.chat.documents import Document


def read_in_words(document: Document, cost: Cost) -> str:
    """What reading came to."""
    return (
        f"{document.name}: {cost.read_tokens} tokens read in {cost.read_seconds:.1f} s; "
        f"{bytes_in_words(cost)}"
    )


def cost_in_words(cost: Cost) -> str:
    """How long the last answer was waited for, its speed, and memory."""
    speed = f"first token after {cost.ask_seconds:.1f} s; " if cost.written_tokens else ""
    speed += "" if cost.written_tokens < 2 else f"{cost.tokens_a_second:.1f} tokens/s; "
    return f"{speed}{bytes_in_words(cost)}"


def bytes_in_words(cost: Cost) -> str:
    """The cache beside a full one."""
    held, full = (number / 2**20 for number in (cost.cache_bytes, cost.full_bytes))
    return f"the cache holds {held:.1f} MiB, a full one would {full:.1f}"
