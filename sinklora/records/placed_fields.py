"""Fields of the rows of a file: what is missing or of another type is named with the row's place."""

from collections.abc import Mapping
from typing import Any


def field_of(row: Mapping[str, Any], name: str, kind: type, place: str) -> Any:
    """A field of a row; ValueError with its place where it is missing or of another type (True is no int),
    and for a text that `check_characters` refuses.
    """
    if name not in row:
        raise ValueError(f"{place}: no {name!r}; there are {', '.join(map(repr, row)) or 'no fields'}")
    value = row[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{place}: {name!r} is {value!r:.80}, expected {kind.__name__}")
    if isinstance(value, str):
        check_characters(value, name, place)
    return value


def optional_text(row: Mapping[str, Any], name: str, place: str) -> str:
    """A field that may be missing or null, which gives ""; ValueError with its place for what is no text."""
    return "" if row.get(name) is None else str(field_of(row, name, str, place))


def texts_of(row: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    """A field that holds at least one text, none of them blank; ValueError with its place for others."""
    texts = field_of(row, name, list, place)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{place}: {name!r} is {texts!r:.80}, expected a list of at least one text")
    for text in texts:
        check_characters(text, name, place)
    return tuple(texts)


def check_characters(text: str, name: str, place: str) -> None:
    """Raise ValueError with the place of a text that holds half a surrogate pair, as JSON may spell it.

    It is no character: neither tokenizers nor files take it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(f"{place}: {name!r} holds {half!r}, half a pair of surrogates") from error
