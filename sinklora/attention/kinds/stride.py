"""Strided columns, of the patterns that SinkLoRA's ablation compares (arXiv 2406.05678, Fig. 7, Table 9)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sinklora.attention.pattern import Pattern


@dataclass(frozen=True)
class StridePattern(Pattern):
    """The last `S` tokens and, back from the query, every `S`-th one before; each head has its own phase.

    `S` is chosen such that there are as many pairs as in windows of `group_size` (the last `G` tokens would
    be nearly twice as many), so that `group_size` means the same budget in every pattern.
    """

    kind: ClassVar[str] = "stride"

    def group_tokens(self, length: Any) -> Any:
        """`S` in tokens, in documents of `length` tokens: solves `N*S - S^2/2 = N*G/2`."""
        group = super().group_tokens(length)
        if isinstance(length, Tensor):
            unseen = length * (length - group).clamp(min=0)
            return (length - unseen.double().sqrt()).round().long().clamp(min=1)
        return max(1, round(length - math.sqrt(length * max(0, length - group))))

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
        back = query - key
        return (back >= 0) & ((back < group) | (back % group == head * group // num_heads))
