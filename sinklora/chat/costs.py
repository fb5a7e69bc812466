"""What a conversation costs: seconds, and bytes beside those of a cache that keeps everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel


@dataclass(frozen=True)
class Cost:
    """What a conversation has taken so far.

    `read_tokens` of the document in `read_seconds`; `ask_seconds` of the last question until the answer's
    first token; its `written_tokens` in `write_seconds`, from that one on; bytes that the cache holds, and
    that a full one would.
    """

    read_tokens: int
    read_seconds: float
    written_tokens: int
    write_seconds: float
    cache_bytes: int
    full_bytes: int
    ask_seconds: float = 0.0

    @property
    def tokens_a_second(self) -> float:
        """Of the last answer; NaN where fewer than two were written."""
        return (self.written_tokens - 1) / self.write_seconds if self.written_tokens > 1 else float("nan")


def full_cache_bytes(model: PreTrainedModel, tokens: int) -> int:
    """Bytes of keys and values of so many tokens in all layers."""
    config: Any = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * size * tokens * model.dtype.itemsize
