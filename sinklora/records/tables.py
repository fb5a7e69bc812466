"""Tables: numbers in a frame, and how its columns are written in Markdown and LaTeX.

A frame holds numbers alone, so that its csv can be computed with: a mean lies in the column of its heading,
what belongs to it in `part(heading, "sd")`, `"low"` and `"high"`. Columns say what a reader sees of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)

DASH = "–"

Side = Literal["left", "right"]


def part(heading: str, what: str) -> str:
    """The name of the column that holds a mean's `sd`, `low` or `high`."""
    return f"{heading} ({what})"


@dataclass(frozen=True)
class Column:
    """A column as it stands: numbers to the right with three decimals, text to the left."""

    heading: str

    def sources(self) -> tuple[str, ...]:
        """The columns of the frame that it is written from."""
        return (self.heading,)

    def side(self, frame: pd.DataFrame) -> Side:
        """Where its cells stand."""
        values = frame[self.heading]
        is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        return "right" if is_number else "left"

    def written(self, *values: Any) -> str:
        """The text of one cell, from the values of its `sources`."""
        [value] = values
        if _is_missing(value):
            return DASH
        return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)


@dataclass(frozen=True)
class Number(Column):
    """Numbers in a format of their own (`form`, as format() takes it), to the left."""

    form: str = "g"

    def side(self, frame: pd.DataFrame) -> Side:
        return "left"

    def written(self, *values: Any) -> str:
        [value] = values
        return DASH if _is_missing(value) else format(value, self.form)


@dataclass(frozen=True)
class Spread(Column):
    """Mean ± standard deviation; a mean of one value alone, without a deviation."""

    digits: int = 2

    def sources(self) -> tuple[str, ...]:
        return self.heading, part(self.heading, "sd")

    def side(self, frame: pd.DataFrame) -> Side:
        return "left"

    def written(self, *values: Any) -> str:
        mean, deviation = values
        if _is_missing(mean):
            return DASH
        text = f"{mean:z.{self.digits}f}"
        return text if _is_missing(deviation) else f"{text} ± {deviation:.{self.digits}f}"


@dataclass(frozen=True)
class Estimate(Column):
    """A value with the ends of its interval in brackets, where it has one: "0.98 (0.91 to 1.00)"."""

    def sources(self) -> tuple[str, ...]:
        return self.heading, part(self.heading, "low"), part(self.heading, "high")

    def side(self, frame: pd.DataFrame) -> Side:
        return "left"

    def written(self, *values: Any) -> str:
        value, low, high = values
        if _is_missing(value):
            return DASH
        return f"{value:.2f}" if _is_missing(low) else f"{value:.2f} ({low:.2f} to {high:.2f})"


@dataclass(frozen=True)
class Table:
    """Numbers and the columns in which a reader sees them; no columns: all of the frame's, as they stand.

    Raises ValueError for columns that need what the frame does not have.
    """

    frame: pd.DataFrame
    columns: Sequence[Column] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame", self.frame.rename(columns=str))
        shown = tuple(self.columns) or tuple(Column(name) for name in self.frame.columns)
        object.__setattr__(self, "columns", shown)
        missing = [name for column in shown for name in column.sources() if name not in self.frame]
        if missing:
            raise ValueError(f"columns: need {missing}; the frame has {list(self.frame.columns)}")

    def written(self) -> pd.DataFrame:
        """The table as text, one column a heading."""
        cells = {
            column.heading: [
                " ".join(column.written(*values).split())
                for values in zip(*(self.frame[name] for name in column.sources()), strict=True)
            ]
            for column in self.columns
        }
        return pd.DataFrame(cells, dtype=object)

    def sides(self) -> list[Side]:
        """Where the cells of each column stand."""
        return [column.side(self.frame) for column in self.columns]

    def _repr_html_(self) -> str:  # what a notebook shows
        return str(self.written().to_html(index=False))


def markdown(table: Table | pd.DataFrame) -> str:
    """A table in Markdown; pipes and line breaks in cells and headings cannot break it."""
    table = _as_table(table)
    text = table.written().map(_escape_pipes).rename(columns=_escape_pipes)
    if text.empty:  # tabulate aligns no column that has no row
        rule = "|".join("---:" if side == "right" else ":---" for side in table.sides())
        return f"| {' | '.join(text.columns)} |\n|{rule}|"
    return str(text.to_markdown(index=False, colalign=table.sides(), disable_numparse=True))


@dataclass(frozen=True)
class WrittenTable:
    """A table as it was written: headings, where the cells of each column stand, and rows, all text."""

    headings: list[str]
    sides: list[Side]
    rows: list[list[str]]


def read_markdown(text: str) -> WrittenTable:
    """What `markdown` wrote. Raises ValueError for text that is no such table."""
    lines = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.strip().splitlines()
    ]
    is_even = len(lines) > 1 and all(len(line) == len(lines[0]) for line in lines)
    if not is_even or not all(re.fullmatch(":?-+:?", rule) for rule in lines[1]):
        raise ValueError(f"text: expected a table in Markdown, got {text[:80]!r}")
    sides: list[Side] = ["right" if rule.endswith(":") else "left" for rule in lines[1]]
    return WrittenTable(lines[0], sides, lines[2:])


def latex(table: Table | pd.DataFrame, caption: str) -> str:
    """A table in LaTeX (package booktabs) with its caption, both escaped."""
    table = _as_table(table)
    text = table.written().rename(columns=lambda name: " ".join(name.split()))
    columns = "".join(side[0] for side in table.sides())
    title = " ".join(caption.split()).translate(LATEX_ESCAPES)
    return str(text.to_latex(index=False, escape=True, caption=title, column_format=columns))


def _as_table(table: Table | pd.DataFrame) -> Table:
    return table if isinstance(table, Table) else Table(table)


def _is_missing(value: Any) -> bool:
    return (
        value is None or value is pd.NA or (isinstance(value, float | np.floating) and bool(np.isnan(value)))
    )


def _escape_pipes(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
