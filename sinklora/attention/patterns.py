"""Attention patterns by name: which key `j` may query `i` of head `h` see?

One definition per pattern (`sees`, in `kinds`); dense mask, FlexAttention's `mask_mod`, windows, density and
picture follow from it. SinkLoRA (arXiv 2406.05678, section 3, Figs. 2, 4 and 7) and LongLoRA (arXiv
2309.12307, section 3.2).
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sinklora.attention.kinds.fixed import FixedPattern
from sinklora.attention.kinds.random_blocks import RandomPattern
from sinklora.attention.kinds.rolled import RolledPattern
from sinklora.attention.kinds.stride import StridePattern
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.pattern import KINDS, Pattern

# Windows are a quarter of each document, `group_size=0.25`, unless said otherwise (LongLoRA's ratio).
SF = AttentionPattern(sink_tokens=4)
"""SF-Attn: all heads in un-shifted windows, and the first four tokens are seen by all later ones.

What that lets a query see is `kinds.windows.AttentionPattern.sees`.
"""

SF_SHIFTED = AttentionPattern(sink_tokens=4, shifted_fraction=0.5)
"""The other reading of the paper's reassembly: sinks, and the second half of the heads stays shifted."""

SHORT = AttentionPattern()
"""Windows alone."""

S2 = AttentionPattern(shifted_fraction=0.5)
"""S²-Attn of LongLoRA without the wrap-around: the second half of the heads shifted by half a window."""

S2_WRAPPED = AttentionPattern(shifted_fraction=0.5, wrapped=True)
"""S²-Attn to the letter of LongLoRA's Algorithm 1, which leaks the future."""

FULL = AttentionPattern(group_size=1.0)
"""Plain causal attention: one window."""

FIXED = FixedPattern()
"""Ablation (Fig. 7): own window, and the last tokens of every earlier one."""

STRIDE = StridePattern()
"""Ablation (Fig. 7): the newest tokens, and of those before every so many one."""

RANDOM = RandomPattern()
"""Ablation (Fig. 7): own window, and earlier blocks drawn at random."""

# Not patterns that anybody would train with: steps of one, each left out (Table 8).
ABLATIONS: dict[str, Pattern] = {
    "shift_up": RolledPattern(up=True, back=False),
    "shift_back": RolledPattern(up=False, back=True),
}


class PatternNames(Mapping[str, Pattern]):
    """Patterns by name: those given and, by its `kind` and with its defaults, every other kind there is.

    So a pattern is known everywhere once its class is defined. ValueError for a kind named like one of them.
    """

    def __init__(self, named: Mapping[str, Pattern]) -> None:
        self._named = dict(named)

    def _known(self) -> dict[str, Pattern]:
        named = self._named | ABLATIONS
        others = KINDS.keys() - {pattern.kind for pattern in named.values()}
        for kind in others & named.keys():
            raise ValueError(f"kind={kind!r} of {KINDS[kind].__name__} is the name of a pattern: rename it")
        return self._named | {kind: KINDS[kind]() for kind in KINDS if kind in others}

    def __getitem__(self, name: str) -> Pattern:
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


PATTERNS = PatternNames(
    {
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
)


def find_pattern(name_or_pattern: str | Pattern) -> Pattern:
    """The pattern of a name; a pattern is returned as it is.

    A name is one of `PATTERNS` or `ABLATIONS`, with other values of its fields if given: `"sf"`,
    `"sf(sink_tokens=8, shifted_fraction=0.25)"`; fields may have the names that they had before. Raises
    ValueError that lists the names, or names the field.
    """
    if isinstance(name_or_pattern, Pattern):
        return name_or_pattern
    known = {**PATTERNS, **ABLATIONS}
    name, _, fields = str(name_or_pattern).partition("(")
    if not isinstance(name_or_pattern, str) or name not in known:
        raise ValueError(f"pattern must be a Pattern or one of {', '.join(known)}, got {name_or_pattern!r}")
    if name == name_or_pattern:
        return known[name]
    try:
        call = ast.parse(f"f({fields}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise SyntaxError
        values = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        if len(values) < len(call.keywords):
            raise ValueError("a field is given twice")
        return dataclasses.replace(known[name], **_present_names(type(known[name]), values))
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(
            f"pattern {name_or_pattern!r}: expected a name with fields, as in 'sf(sink_tokens=8)' ({error})"
        ) from error


def pattern_from_dict(data: dict[str, Any]) -> Pattern:
    """The pattern that `to_dict` described, of this version or an earlier one.

    ValueError for an unknown kind, wrong keys or wrong values.
    """
    if not isinstance(data, dict) or data.get("kind") not in KINDS:
        raise ValueError(f"a pattern's dict needs 'kind', one of {', '.join(KINDS)}; got {data!r}")
    kind = KINDS[data["kind"]]
    values = _present_names(kind, {key: value for key, value in data.items() if key != "kind"})
    expected = {field.name for field in dataclasses.fields(kind)}
    if set(values) != expected:
        raise ValueError(
            f"a {data['kind']!r} pattern needs the keys {sorted(expected)}, got {sorted(values)}"
        )
    return kind(**values)


def _present_names(kind: type[Pattern], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` by the names that fields have now; ValueError where one is given by both its names."""
    present = {kind.former_names.get(name, name): value for name, value in values.items()}
    if len(present) < len(values):
        raise ValueError(f"a field is given by its present and its former name: {sorted(values)}")
    return present
