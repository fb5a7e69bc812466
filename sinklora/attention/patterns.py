"""Attention patterns: which key `j` may query `i` of head `h` see?

One definition per pattern; dense mask, FlexAttention's `mask_mod`, windows, density and picture follow
from it. SinkLoRA (arXiv 2406.05678, section 3, Figs. 2, 4 and 7) and LongLoRA (arXiv 2309.12307, section
3.2).
"""

from __future__ import annotations

import ast
import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinklora.attention.pattern import Pattern, check_integer, check_share, triangle
from sinklora.attention.sparse_baselines import FixedPattern, RandomPattern, RolledPattern, StridePattern


@dataclass(frozen=True)
class AttentionPattern(Pattern):
    """Windows, optionally with global sinks and half-shifted heads: all patterns of LongLoRA and SinkLoRA.

    The first `sink_tokens` tokens are seen by all later ones. The last round(`shifted` * H) heads have their
    windows shifted by `G/2`. `wrapped` joins the last and the first half window of these heads as LongLoRA's
    Algorithm 1 does, which LEAKS THE FUTURE: only for studying that. ValueError names a wrong argument.
    """

    kind: ClassVar[str] = "windows"
    sink_tokens: int = 0
    shifted: float = 0.0
    wrapped: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sink_tokens", check_integer("sink_tokens", self.sink_tokens, minimum=0))
        object.__setattr__(self, "shifted", check_share("shifted", self.shifted))
        if not isinstance(self.wrapped, bool):
            raise ValueError(f"wrapped must be True or False, got {self.wrapped!r}")
        if self.shifted and isinstance(self.group_size, int) and self.group_size % 2:
            raise ValueError(
                f"group_size must be even when heads are shifted by half a group, got {self.group_size}: "
                f"use {self.group_size + 1}, or shifted=0.0"
            )
        if self.wrapped and (self.sink_tokens or not self.shifted):
            raise ValueError(
                "wrapped=True is LongLoRA's Algorithm 1, which shifts heads and has no sinks: use "
                f"shifted > 0 and sink_tokens=0, got shifted={self.shifted}, sink_tokens={self.sink_tokens}"
            )

    def group_tokens(self, num_tokens: int) -> int:
        """The window `G` in tokens for rows of `num_tokens`: a fraction rounds up, to even with shifts."""
        tokens = super().group_tokens(num_tokens)
        return tokens + tokens % 2 if self.shifted else tokens

    def shifted_heads(self, num_heads: int) -> int:
        """How many heads are shifted: always the last ones, `shifted * num_heads` rounded half up."""
        return math.floor(self.shifted * num_heads + 0.5)

    def window_boundaries(self, num_tokens: int, shifted: bool, row_tokens: int | None = None) -> list[int]:
        """Where windows start, and the end: `[0, ..., num_tokens]`, in a document of `num_tokens` tokens.

        `row_tokens` (default: `num_tokens`) is the row length, which a fractional `group_size` refers to.
        With `wrapped` and `shifted`, the first and the last window listed are one window, the last one's
        tokens first.
        """
        group = self.group_tokens(num_tokens if row_tokens is None else row_tokens)
        if not shifted:
            return [*range(0, num_tokens, group), num_tokens]
        half = group // 2
        if not self.wrapped:
            return [0, *range(half, num_tokens, group), num_tokens]
        tail = max(num_tokens - half, half)
        return [0, *range(half, tail, group), *([tail] if tail < num_tokens else []), num_tokens]

    def window_start(
        self, position: Tensor, shifted: bool | Tensor, num_tokens: int, length: int | Tensor
    ) -> Tensor:
        """First token of each `position`'s window, counted from its document's start."""
        group = self.group_tokens(num_tokens)
        offset = shifted * (group // 2)
        start = torch.where(position < offset, 0, position - (position - offset) % group)
        if not self.wrapped:
            return start
        tail = self.wrapped_tail(num_tokens, length)
        return torch.where(shifted & (position >= tail), tail, start)

    def wrapped_tail(self, num_tokens: int, length: int | Tensor) -> int | Tensor:
        """Start of the last half window, which wrapping joins to the first; `>= length`: none."""
        half = self.group_tokens(num_tokens) // 2
        return (
            torch.clamp(length - half, min=half) if isinstance(length, Tensor) else max(length - half, half)
        )

    def sees(
        self, head: Tensor, query: Tensor, key: Tensor, num_heads: int, num_tokens: int, length: int | Tensor
    ) -> Tensor:
        shifted = head >= num_heads - self.shifted_heads(num_heads)
        start = self.window_start(query, shifted, num_tokens, length)
        seen = (key <= query) & ((key >= start) | (key < self.sink_tokens))
        if not self.wrapped:
            return seen
        half = self.group_tokens(num_tokens) // 2
        return seen | (shifted & (query < half) & (key >= self.wrapped_tail(num_tokens, length)))

    def density(self, num_heads: int, num_tokens: int) -> float:
        """Visible pairs over causal pairs, all heads: the attention work as a share of full attention's."""
        check_integer("num_heads", num_heads, minimum=1)
        check_integer("num_tokens", num_tokens, minimum=1)
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

    def windows_only(self, num_tokens: int) -> AttentionPattern:
        return dataclasses.replace(self, sink_tokens=0)


FULL = AttentionPattern(group_size=1.0)

SHORT = AttentionPattern()

S2 = AttentionPattern(shifted=0.5)

S2_WRAPPED = AttentionPattern(shifted=0.5, wrapped=True)

SF = AttentionPattern(sink_tokens=4)

SF_SHIFTED = AttentionPattern(sink_tokens=4, shifted=0.5)

FIXED = FixedPattern()

STRIDE = StridePattern()

RANDOM = RandomPattern()

PATTERNS: dict[str, Pattern] = {
    "full": FULL,
    "short": SHORT,
    "s2": S2,
    "s2_wrapped": S2_WRAPPED,
    "sf": SF,
    "sf_shifted": SF_SHIFTED,
    "fixed": FIXED,
    "stride": STRIDE,
    "random": RANDOM,
}

# Not patterns that anybody would train with: steps of one, each left out (Table 8).
ABLATIONS: dict[str, Pattern] = {
    "shift_up": RolledPattern(up=True, back=False),
    "shift_back": RolledPattern(up=False, back=True),
}

KINDS: dict[str, type[Pattern]] = {
    "windows": AttentionPattern,
    "fixed": FixedPattern,
    "stride": StridePattern,
    "random": RandomPattern,
    "rolled": RolledPattern,
}


def find_pattern(name_or_pattern: str | Pattern) -> Pattern:
    """The pattern of a name; a pattern is returned as it is.

    A name is one of `PATTERNS` or `ABLATIONS`, with other values of its fields if given: ``"sf"``,
    ``"sf(sink_tokens=8, shifted=0.25)"``. Raises ValueError that lists the names, or names the field.
    """
    if isinstance(name_or_pattern, Pattern):
        return name_or_pattern
    known = PATTERNS | ABLATIONS
    name, _, fields = str(name_or_pattern).partition("(")
    if not isinstance(name_or_pattern, str) or name not in known:
        raise ValueError(f"pattern must be a Pattern or one of {', '.join(known)}, got {name_or_pattern!r}")
    if name == name_or_pattern:
        return known[name]
    try:
        call = ast.parse(f"f({fields}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise SyntaxError
        values = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        return dataclasses.replace(known[name], **values)
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(
            f"pattern {name_or_pattern!r}: expected a name with fields, as in 'sf(sink_tokens=8)' ({error})"
        ) from error


def pattern_from_dict(data: dict[str, Any]) -> Pattern:
    """The pattern that `to_dict` described. ValueError for an unknown kind, wrong keys or wrong values."""
    if not isinstance(data, dict) or data.get("kind") not in KINDS:
        raise ValueError(f"a pattern's dict needs 'kind', one of {', '.join(KINDS)}; got {data!r}")
    values = {key: value for key, value in data.items() if key != "kind"}
    kind = KINDS[data["kind"]]
    expected = {field.name for field in dataclasses.fields(kind)}
    if set(values) != expected:
        raise ValueError(
            f"a {data['kind']!r} pattern needs the keys {sorted(expected)}, got {sorted(values)}"
        )
    return kind(**values)
