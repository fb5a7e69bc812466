"""One half of a shift, for SinkLoRA's ablation of segmentation and reassembly (arXiv 2406.05678, Table 8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.pattern import Attention, Pattern


@dataclass(frozen=True)
class RolledPattern(Pattern):
    """Windows with only one of the two steps of shifting.

    `up` rolls queries, keys and values of the second half of the heads back by half a window before
    attention, `back` rolls the outputs forward again after it; both together are S2_WRAPPED. With one of them
    a token is given what was attended for another one, so this is an operator and not a mask: `sees` is what
    a query sees after the roll. Rows whose length the window divides; no padding, no packed documents.
    """

    kind: ClassVar[str] = "rolled"
    whole_rows_only: ClassVar[bool] = True
    up: bool = True
    back: bool = True

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
        return (key <= query) & (key >= query - query % group)

    def windows(self) -> AttentionPattern:
        return AttentionPattern(self.group_size)

    def around(self, attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """`attention` between the rolls; ValueError where the window is odd or does not divide the row."""
        repeats = query.shape[1] // key.shape[1]  # the second half may begin inside a group of query heads
        key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
        if self.up:
            query, key, value = (self._roll(x, -1) for x in (query, key, value))
        output = attention(query, key, value)
        return self._roll(output, 1) if self.back else output

    def _roll(self, x: Tensor, direction: int) -> Tensor:
        group = self.group_tokens(x.shape[2])
        if x.shape[2] % group or group % 2:
            raise ValueError(f"windows of {group} tokens must be even and divide the row of {x.shape[2]}")
        half = x.shape[1] // 2
        return torch.cat([x[:, :half], x[:, half:].roll(direction * group // 2, 2)], 1)
