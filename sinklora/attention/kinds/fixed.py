"""Summary columns, of the patterns that SinkLoRA's ablation compares (arXiv 2406.05678, Fig. 7, Table 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sinklora.attention.pattern import Pattern
from sinklora.ranges import check_count


@dataclass(frozen=True)
class FixedPattern(Pattern):
    """Own window, and the last `summary_tokens` of every earlier one ("fixed" of arXiv 1904.10509)."""

    kind: ClassVar[str] = "fixed"
    summary_tokens: int = 2  # as many pairs as 4 sinks when a document has 4 windows

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "summary_tokens", check_count("summary_tokens", self.summary_tokens))

    def sees(
        self,
        head: Tensor,
        query: Tensor,
        key: Tensor,
        *,
        num_heads: int,
        group: int | Tensor,
        length: int | Tensor,
    ) -> Tensor:
        own = key >= query - query % group
        return (key <= query) & (own | (key % group >= group - self.summary_tokens))
