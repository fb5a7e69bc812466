"""Examples of instruction tuning: from a name to conversations.

A source is named by a string: `jsonl:PATH` (an object a line), `json:PATH` (a list of objects),
`parquet:PATH` or `hub:NAME` (a data set of the Hugging Face hub, or a local folder in its format). A row has
a column `messages` (a list of role and content), or Alpaca's `instruction` and `output`, perhaps with an
`input`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from sinklora.records.checks import Count, check_fields
from sinklora.records.jsonl import json_lines
from sinklora.records.placed_fields import field_of, optional_text
from sinklora.records.row_files import PlacedRows, hub_rows, json_rows, parquet_rows


def _known_source(source: str) -> str:
    kind, colon, argument = source.partition(":")
    if kind not in READERS or not colon or not argument:
        raise ValueError(f"one of {', '.join(name + ':…' for name in READERS)}")
    return source


@dataclass(frozen=True)
class ExampleSource:
    """Which examples: a source by name, the split of a hub's data set (files have none), and how many (None:
    all), from the first on. Raises TypeError or ValueError naming the field.
    """

    source: Annotated[str, AfterValidator(_known_source)]
    split: str = "train"
    limit: Count | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.split != "train" and not self.source.startswith("hub:"):
            raise ValueError(
                f"split={self.split!r}: {self.source!r} has no splits, all of its examples are read; give a "
                "file of its own"
            )


@dataclass(frozen=True)
class Example:
    """A conversation, (role, content) by (role, content), and its place in its source."""

    place: str
    turns: tuple[tuple[str, str], ...]


def read_examples(spec: ExampleSource) -> list[Example]:
    """The examples of a source, in its order.

    Raises FileNotFoundError where it is missing, ValueError naming the place of a row that is no example, and
    where there is none.
    """
    kind, _, argument = spec.source.partition(":")
    rows = islice(READERS[kind](argument, spec.split), spec.limit)
    examples = [Example(place, _turns(place, row)) for place, row in rows]
    if not examples:
        raise ValueError(f"source={spec.source!r}: holds no examples")
    return examples


def content_hash(examples: Iterable[Example]) -> str:
    """SHA-256 over all conversations, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example.turns).encode() + b"\n")
    return digest.hexdigest()


def _turns(place: str, row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    messages = row.get("messages")
    if messages is None:
        asked = field_of(row, "instruction", str, place)
        further = optional_text(row, "input", place)
        if further.strip():
            asked = f"{asked}\n\n{further}"
        return (("user", asked), ("assistant", field_of(row, "output", str, place)))
    if isinstance(messages, str) or not isinstance(messages, Iterable):
        raise ValueError(f"{place}: 'messages' is {messages!r:.80}, expected a list of role and content")
    turns = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(f"{place}: 'messages' holds {message!r:.80}, expected role and content")
        turns.append((field_of(message, "role", str, place), field_of(message, "content", str, place)))
    return tuple(turns)


def _file(argument: str, kind: str) -> Path:
    path = Path(argument).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"source: {argument!r} is not a file; give a {kind} file of examples")
    return path


def _jsonl(argument: str, split: str) -> PlacedRows:
    return json_lines(_file(argument, "jsonl"), skip_blank=True)


def _json(argument: str, split: str) -> PlacedRows:
    return json_rows(_file(argument, "json"))


def _parquet(argument: str, split: str) -> PlacedRows:
    return parquet_rows(_file(argument, "parquet"))


def _hub(argument: str, split: str) -> PlacedRows:
    return hub_rows(argument, split, f"source='hub:{argument}'")


READERS = {"jsonl": _jsonl, "json": _json, "parquet": _parquet, "hub": _hub}
