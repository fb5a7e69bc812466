"""What a number given to a pattern or a policy may be: ValueError that names the argument, its value and what
to give. Specs that files are read into say the same in their annotations (`records.checks`).
"""

from __future__ import annotations

from dataclasses import fields
from math import isfinite
from numbers import Integral, Real
from typing import Any


def is_number(value: object) -> bool:
    """Whether it is a number, of NumPy too; True is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plain(value: Any) -> Any:
    """A number as Python's own int or float; all else as it is."""
    if not is_number(value):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def plain_fields(spec: Any) -> None:
    """Make the numbers in a frozen dataclass Python's own, so that it is named and stored as it always is."""
    for field in fields(spec):
        object.__setattr__(spec, field.name, plain(getattr(spec, field.name)))


def check_count(name: str, value: Any, least: int = 0) -> int:
    """A whole number, `least` or more, as int."""
    if not is_number(value) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{name}={value!r}: expected a whole number, {least} or more")
    return int(value)


def check_fraction(name: str, value: Any, of: str) -> float:
    """A fraction of something, 0 to 1, as float."""
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: expected a fraction of {of}, 0 to 1")
    return float(value)


def check_tokens(name: str, value: Any, of: str, zero: bool = False) -> int | float:
    """Tokens (int) or a fraction of something (float, up to 1); more than 0 unless `zero`."""
    if not is_number(value):
        raise ValueError(f"{name}={value!r}: expected a fraction of {of} (float) or tokens (int)")
    if not (value >= 0 if zero else value > 0):
        raise ValueError(f"{name}={value!r}: expected {'0 or more' if zero else 'more than 0'}")
    if not isinstance(value, Integral) and value > 1:
        raise ValueError(f"{name}={value!r}: a fraction of {of} is at most 1.0; give tokens as int")
    return plain(value)


def check_weight(name: str, value: Any) -> float:
    """A finite number, 0 or more, as float."""
    if not is_number(value) or not isfinite(value) or value < 0:
        raise ValueError(f"{name}={value!r}: expected a number, 0 or more")
    return float(value)


def check_decay(value: Any) -> float:
    """What is left of a score after another query, as float: above 0, and at most 1, which is all of it."""
    if not is_number(value) or not 0 < value <= 1:
        raise ValueError(f"decay={value!r}: expected a number above 0 and at most 1")
    return float(value)
