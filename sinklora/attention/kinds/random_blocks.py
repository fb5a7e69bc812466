"""Random blocks, of the patterns that SinkLoRA's ablation compares (arXiv 2406.05678, Fig. 7, Table 9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sinklora.attention.pattern import Pattern
from sinklora.ranges import check_count


@dataclass(frozen=True)
class RandomPattern(Pattern):
    """Own window, and one random block of earlier tokens per head and per `block_tokens` queries."""

    kind: ClassVar[str] = "random"
    block_tokens: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "block_tokens", check_count("block_tokens", self.block_tokens, least=1))
        object.__setattr__(self, "seed", check_count("seed", self.seed))

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
        start = query - query % group
        blocks = (start // self.block_tokens).clamp(min=1)  # whole blocks before the own window
        chosen = _hash(head, query // self.block_tokens, self.seed) % blocks
        # Blocks count back from the window; where less than one fits there is none to see.
        random = ((start - 1 - key) // self.block_tokens == chosen) & (start >= self.block_tokens)
        return (key <= query) & ((key >= start) | random)


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
