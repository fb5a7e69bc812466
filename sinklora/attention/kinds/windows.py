"""Windows, half-shifted heads and sinks: S²-Attn of LongLoRA (arXiv 2309.12307, section 3.2) and SF-Attn of
SinkLoRA (arXiv 2406.05678, section 3.1, Figs. 2 and 4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinklora.attention.pattern import Pattern, triangle
from sinklora.ranges import check_count, check_fraction


@dataclass(frozen=True)
class AttentionPattern(Pattern):
    """Windows, optionally with global sinks and half-shifted heads: all patterns of LongLoRA and SinkLoRA.

    The first `sink_tokens` tokens are seen by all later ones. The last round(`shifted_fraction` * H) heads
    have their windows shifted by `G/2`. `wrapped` joins the last and the first half window of these heads as
    LongLoRA's Algorithm 1 does, which LEAKS THE FUTURE: only for studying that. ValueError names a wrong
    argument.
    """

    kind: ClassVar[str] = "windows"
    former_names: ClassVar[Mapping[str, str]] = {"shifted": "shifted_fraction"}
    sink_tokens: int = 0
    shifted_fraction: float = 0.0
    wrapped: bool = False

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
        shifted = head >= num_heads - self.shifted_heads(num_heads)
        start = self.window_start(query, shifted, group, length)
        seen = (key <= query) & ((key >= start) | (key < self.sink_tokens))
        if not self.wrapped:
            return seen
        return seen | (shifted & (query < group // 2) & (key >= self.wrapped_tail(group, length)))

    def window_start(
        self, position: Tensor, shifted: bool | Tensor, group: int | Tensor, length: int | Tensor
    ) -> Tensor:
        """First token of each `position`'s window, counted from its document's start."""
        offset = shifted * (group // 2)
        start = torch.where(position < offset, 0, position - (position - offset) % group)
        if not self.wrapped:
            return start
        tail = self.wrapped_tail(group, length)
        return torch.where(shifted & (position >= tail), tail, start)

    def wrapped_tail(self, group: int | Tensor, length: int | Tensor) -> int | Tensor:
        """Start of the last half window, which wrapping joins to the first; `>= length`: none."""
        half = group // 2
        if isinstance(length, Tensor):
            return torch.clamp(length - half, min=half)
        return max(length - half, half)

    def shifted_heads(self, num_heads: int) -> int:
        """How many heads are shifted: always the last `shifted_fraction * num_heads`, rounded half up."""
        return math.floor(self.shifted_fraction * num_heads + 0.5)

    def group_tokens(self, length: Any) -> Any:
        """The window `G` in tokens, in documents of `length` tokens: fractions round up, to even with
        shifts.
        """
        tokens = super().group_tokens(length)
        return tokens + tokens % 2 if self.shifted_fraction else tokens

    def windows(self) -> AttentionPattern:
        return self

    def window_runs(self, length: int, shifted: bool) -> list[tuple[int, int]]:
        """A document's windows in order, as runs of equal ones: (how many, tokens of each), none empty.

        With `wrapped` and `shifted`, the first and the last window listed are one window, the last one's
        tokens first.
        """
        group = self.group_tokens(length)
        first = min(group // 2, length) if shifted else 0
        last = min(group // 2, length - first) if shifted and self.wrapped else 0
        between = length - first - last
        runs = [(1, first), (between // group, group), (1, between % group), (1, last)]
        return [(count, tokens) for count, tokens in runs if count > 0 and tokens > 0]

    def window_boundaries(self, length: int, shifted: bool) -> list[int]:
        """Where the windows of a document start, and its end: `[0, ..., length]` (see `window_runs`)."""
        runs = self.window_runs(length, shifted)
        return [0, *accumulate(tokens for count, tokens in runs for _ in range(count))]

    def density(self, num_heads: int, num_tokens: int) -> float:
        """Visible pairs over causal pairs, all heads: the attention work as a share of full attention's."""
        check_count("num_heads", num_heads, least=1)
        check_count("num_tokens", num_tokens, least=1)
        shifted = self.shifted_heads(num_heads)
        seen = shifted * self._pairs(num_tokens, True) + (num_heads - shifted) * self._pairs(
            num_tokens, False
        )
        return seen / (num_heads * triangle(num_tokens))

    def _pairs(self, num_tokens: int, shifted: bool) -> int:
        windows = list(pairwise(self.window_boundaries(num_tokens, shifted)))
        own = sum(triangle(end - start) for start, end in windows)
        sinks = sum((end - start) * min(start, self.sink_tokens) for start, end in windows)
        wraps = self.wrapped and shifted and len(windows) > 1
        return own + sinks + (windows[0][1] * (num_tokens - windows[-1][0]) if wraps else 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sink_tokens", check_count("sink_tokens", self.sink_tokens))
        shifted = check_fraction("shifted_fraction", self.shifted_fraction, "the heads")
        object.__setattr__(self, "shifted_fraction", shifted)
        if not isinstance(self.wrapped, bool):
            raise ValueError(f"wrapped={self.wrapped!r}: expected True or False")
        if shifted and isinstance(self.group_size, int) and self.group_size % 2:
            raise ValueError(
                f"group_size={self.group_size}: must be even when heads are shifted by half a group; use "
                f"{self.group_size + 1}, or shifted_fraction=0.0"
            )
        if self.wrapped and (self.sink_tokens or not shifted):
            raise ValueError(
                "wrapped=True is LongLoRA's Algorithm 1, which shifts heads and has no sinks: use "
                f"shifted_fraction > 0 and sink_tokens=0, got shifted_fraction={shifted}, "
                f"sink_tokens={self.sink_tokens}"
            )
