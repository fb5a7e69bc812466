"""The patterns that SinkLoRA's ablation compares (arXiv 2406.05678, Fig. 7 and Table 9).

With the same `group_size` each sees about as many pairs as SF-Attn with four windows and four sinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinklora.attention.pattern import Pattern, check_integer


@dataclass(frozen=True)
class FixedPattern(Pattern):
    """Own window, and the last `summary_tokens` of every earlier one ("fixed" of arXiv 1904.10509)."""

    kind: ClassVar[str] = "fixed"
    summary_tokens: int = 2  # as many pairs as 4 sinks when a row has 4 windows

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "summary_tokens", check_integer("summary_tokens", self.summary_tokens, 0))

    def sees(
        self, head: Tensor, query: Tensor, key: Tensor, num_heads: int, num_tokens: int, length: int | Tensor
    ) -> Tensor:
        group = self.group_tokens(num_tokens)
        own = key >= query - query % group
        return (key <= query) & (own | (key % group >= group - self.summary_tokens))


@dataclass(frozen=True)
class StridePattern(Pattern):
    """The last `S` tokens and, back from the query, every `S`-th one before; each head has its own phase.

    `S` is chosen such that there are as many pairs as in windows of `group_size` (the last `G` tokens would
    be nearly twice as many), so that `group_size` means the same budget in every pattern.
    """

    kind: ClassVar[str] = "stride"

    def stride_tokens(self, num_tokens: int) -> int:
        """`S` in tokens for rows of `num_tokens`: solves `N*S - S^2/2 = N*G/2`."""
        group = min(self.group_tokens(num_tokens), num_tokens)
        return max(1, round(num_tokens - math.sqrt(num_tokens * (num_tokens - group))))

    def sees(
        self, head: Tensor, query: Tensor, key: Tensor, num_heads: int, num_tokens: int, length: int | Tensor
    ) -> Tensor:
        stride = self.stride_tokens(num_tokens)
        back = query - key
        return (back >= 0) & ((back < stride) | (back % stride == head * stride // num_heads))


@dataclass(frozen=True)
class RandomPattern(Pattern):
    """Own window, and one random block of earlier tokens per head and per `block_tokens` queries."""

    kind: ClassVar[str] = "random"
    block_tokens: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "block_tokens", check_integer("block_tokens", self.block_tokens, 1))
        object.__setattr__(self, "seed", check_integer("seed", self.seed, 0))

    def sees(
        self, head: Tensor, query: Tensor, key: Tensor, num_heads: int, num_tokens: int, length: int | Tensor
    ) -> Tensor:
        group = self.group_tokens(num_tokens)
        start = query - query % group
        blocks = torch.clamp(start // self.block_tokens, min=1)  # whole blocks before the own window
        chosen = _hash(head, query // self.block_tokens, self.seed) % blocks
        # Blocks count back from the window; where less than one fits there is none to see.
        random = ((start - 1 - key) // self.block_tokens == chosen) & (start >= self.block_tokens)
        return (key <= query) & ((key >= start) | random)


@dataclass(frozen=True)
class RolledPattern(Pattern):
    """Windows with only one of the two steps of shifting (SinkLoRA's Table 8).

    `up` rolls queries, keys and values of the second half of the heads back by half a window before
    attention, `back` rolls the outputs forward again after it; both together are S2_WRAPPED. With one of them
    a token is given what was attended for another one, so this is an operator and not a mask: `sees` is what
    a query sees after the roll. Rows whose length the window divides; no packed documents.
    """

    kind: ClassVar[str] = "rolled"
    whole_rows_only: ClassVar[bool] = True
    up: bool = True
    back: bool = True

    def sees(
        self, head: Tensor, query: Tensor, key: Tensor, num_heads: int, num_tokens: int, length: int | Tensor
    ) -> Tensor:
        group = self.group_tokens(num_tokens)
        return (key <= query) & (key >= query - query % group)

    def before(self, x: Tensor) -> Tensor:
        """Queries, keys or values [B, H, N, D] as attention gets them."""
        return self._roll(x, -1) if self.up else x

    def after(self, output: Tensor) -> Tensor:
        """Outputs [B, H, N, D] as the model gets them."""
        return self._roll(output, 1) if self.back else output

    def _roll(self, x: Tensor, direction: int) -> Tensor:
        group = self.group_tokens(x.shape[2])
        if x.shape[2] % group or group % 2:
            raise ValueError(f"windows of {group} tokens must be even and divide the row of {x.shape[2]}")
        half = x.shape[1] // 2
        return torch.cat([x[:, :half], x[:, half:].roll(direction * group // 2, 2)], 1)


def _hash(head: Tensor, block: Tensor, seed: int) -> Tensor:
    """A pseudo-random number in [0, 2**16) per (head, block), the same on every device.

    Mixed bits, not a table of draws: FlexAttention compiles this into its kernel. Such kernels count
    in int32, so every intermediate stays below 2**31.
    """
    return _mix(_mix(block & 0xFFFF) ^ ((head * 40503 + seed % 2**16 * 11027) & 0xFFFF))


def _mix(value: Tensor) -> Tensor:
    """A permutation of 16-bit numbers: odd factors and shifts to the right are invertible."""
    for factor, shift in ((28495, 7), (21155, 9), (30011, 8)):
        value = value * factor & 0xFFFF
        value = value ^ (value >> shift)
    return value
