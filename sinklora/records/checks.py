"""Specs that check themselves: types and ranges stand in a dataclass's annotations, errors name the field.

`check_fields` in `__post_init__` refuses what the annotations do not allow and changes nothing, so that a
spec hashes as it was written. `read_fields` makes a spec of what a YAML or JSON file holds.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

T = TypeVar("T")


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError("at least one, and none twice")
    return values


def one_of(choices: Collection[str]) -> AfterValidator:
    """What makes an annotated text one of several: `Annotated[str, one_of(SPLITS)]`.

    `choices` are looked at when a text is checked, so that a registry may still grow.
    """

    def check(value: str) -> str:
        if value not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value

    return AfterValidator(check)


Count = Annotated[int, Field(ge=1)]

NotNegative = Annotated[int, Field(ge=0)]

Positive = Annotated[float, Field(gt=0)]

Share = Annotated[float, Field(ge=0, lt=1)]

Distinct = Annotated[tuple[T, ...], AfterValidator(_distinct)]

# What pydantic finds wrong, in the words that follow "expected".
WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "True or False",
    "string_type": "text",
    "tuple_type": "a tuple",
    "dict_type": "a mapping",
    "is_instance_of": "{class}",
    "dataclass_exact_type": "{class_name}",
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "more than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "too_short": "at least {min_length}",
    "value_error": "{error}",
}

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


def check_fields(spec: Any) -> None:
    """Raise unless every field of a dataclass holds what its annotation allows.

    True is no number, 60.0 no whole number, "60" neither; whole numbers stand for floats. Raises TypeError
    for a wrong type and ValueError for a value out of range, naming the field, its value and what to write.
    """
    for name, (hint, adapter) in _adapters(type(spec)).items():  # type: ignore[arg-type]
        _validate(name, getattr(spec, name), hint, adapter)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raise unless an argument holds what an annotation allows, as `check_fields` does for a field."""
    _validate(name, value, hint, _adapter(hint))


def read_fields(kind: type[T], values: Any) -> T:
    """A dataclass from the values of a YAML or JSON file, specs within specs included.

    Lists become tuples where the field is one. For a float the text of a number is taken as well: YAML 1.1
    reads 2e-5, without a point, as text. Everything else must have its type, as `check_fields` says.
    Raises ValueError for unknown and missing keys, with the nearest known one.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{kind.__name__}={values!r}: expected keys and values, such as {_example(kind)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(fields)}"
            raise ValueError(f"{kind.__name__} has no key {key!r}; {advice}")
    needed = [name for name, field in fields.items() if not _has_default(field)]
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{kind.__name__} lacks the key {missing[0]!r}; it needs {', '.join(needed)}")
    hints = get_type_hints(kind, include_extras=True)
    return kind(**{name: _read(name, value, hints[name]) for name, value in values.items()})


def check_counts(least: int = 1, **values: int) -> None:
    """Raise ValueError, or TypeError, unless every argument is a whole number of at least `least`."""
    for name, value in values.items():
        if type(value) is not int or value < least:  # only a refusal needs pydantic, which takes a while
            check_value(name, value, Annotated[int, Field(ge=least)])


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError, or TypeError, unless an argument is one of several texts."""
    if type(value) is not str or value not in choices:
        check_value(name, value, Annotated[str, one_of(choices)])


def check_among(name: str, values: Collection[Any], of: str, choices: Collection[Any]) -> None:
    """Raise ValueError unless all values of an argument are among those of another one, `of`."""
    others = [value for value in values if value not in choices]
    if others:
        raise ValueError(
            f"{name}={list(values)}: expected some of {of}={list(choices)}; "
            f"leave out {_listed(others)}, or add it there"
        )


def check_holds(name: str, values: Collection[Any], needed: Collection[Any], why: str) -> None:
    """Raise ValueError unless an argument has all values that are needed; `why`: for what."""
    missing = [value for value in needed if value not in values]
    if missing:
        raise ValueError(f"{name}={list(values)}: add {_listed(missing)}; {why}")


def _listed(values: Collection[Any]) -> str:
    return ", ".join(map(repr, values))


def _validate(name: str, value: Any, hint: Any, adapter: TypeAdapter[Any]) -> None:
    try:
        adapter.validate_python(value, strict=True)
    except ValidationError as error:
        raise _refusal(name, value, hint, error.errors(include_url=False)) from None


@cache
def _adapters(kind: type) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: (hints[field.name], _adapter(hints[field.name])) for field in dataclasses.fields(kind)
    }


def _adapter(hint: Any) -> TypeAdapter[Any]:
    if dataclasses.is_dataclass(hint):  # it has checked itself
        return TypeAdapter(InstanceOf[hint])
    return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True))


def _refusal(name: str, value: Any, hint: Any, errors: list[ErrorDetails]) -> Exception:
    """What to raise for a field: the first wrong place in it, and all that would be right there."""
    place = errors[0]["loc"] if isinstance(value, tuple | list | Mapping) else None
    here = [
        error for error in errors if place in (None, error["loc"])
    ]  # of a union's types each has an error
    expected = list(dict.fromkeys(map(_words, here)))
    if not place and type(None) in get_args(hint):
        expected.append("None")
    at = "".join(f"[{part!r}]" for part in place or ())
    wrong = here[0]["input"]
    of_type = any(error["type"].endswith(("_type", "instance_of")) for error in here)
    told = repr(str(wrong)) if isinstance(wrong, Path) else repr(wrong)
    kind = TypeError if of_type else ValueError
    return kind(f"{name}{at}={told}: expected {' or '.join(expected)}{_advice(wrong, here)}")


def _words(error: ErrorDetails) -> str:
    words = WORDS.get(error["type"])
    return words.format(**error["ctx"]) if words and "ctx" in error else words or error["msg"].lower()


def _advice(value: Any, errors: list[ErrorDetails]) -> str:
    """What to write, where the value says what was meant."""
    kinds = {error["type"] for error in errors}
    if isinstance(value, str) and NUMBER.fullmatch(value) and kinds & {"int_type", "float_type"}:
        number = float(value)
        return f"; write {int(number) if number.is_integer() and 'int_type' in kinds else number!r}, not text"
    if isinstance(value, float) and value.is_integer() and "int_type" in kinds:
        return f"; write {int(value)}"
    return ""


def _read(name: str, value: Any, hint: Any) -> Any:
    plain = _without_none(hint)
    if plain is float and isinstance(value, str) and NUMBER.fullmatch(value):
        return float(value)
    if get_origin(plain) is tuple and isinstance(value, list):
        return tuple(value)
    if isinstance(plain, type) and dataclasses.is_dataclass(plain) and not isinstance(value, plain):
        try:
            return read_fields(plain, value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from error
    return value


def _without_none(hint: Any) -> Any:
    """The type itself, without its range and the choice of None; a union of several types as it is."""
    if get_origin(hint) is Annotated:
        return _without_none(get_args(hint)[0])
    rest = [part for part in get_args(hint) if part is not type(None)]
    return _without_none(rest[0]) if len(rest) == 1 and type(None) in get_args(hint) else hint


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is not missing or field.default_factory is not missing


def _example(kind: Any) -> str:
    first = dataclasses.fields(kind)[0]
    return f"{first.name}: {first.default if first.default is not dataclasses.MISSING else '…'}"
