"""Tables: what each kind of column writes, where its cells stand, and what cannot break the text."""

import math
from typing import Any

import pandas as pd
import pytest

from sinklora.records.tables import (
    DASH,
    Column,
    Estimate,
    Number,
    Spread,
    Table,
    latex,
    markdown,
    part,
    read_markdown,
)

FRAME = pd.DataFrame(
    {
        "name": ["a_b", "c"],
        "value": [1.23456, math.nan],
        "count": pd.array([3, None], dtype="Int64"),
        "best": [True, False],
        "gap": [-0.001, math.nan],
        "gap (sd)": [0.5, math.nan],
        "value (low)": [-1.25, math.nan],
        "value (high)": [1.25, math.nan],
    }
)


def cells(text: str, line: int) -> list[str]:
    """The cells of a line of a table in Markdown: 0 is the heading, 2 the first row."""
    return [cell.strip() for cell in text.splitlines()[line].split("|")[1:-1]]


def test_plain_columns_stand_as_they_are() -> None:
    text = markdown(FRAME[["name", "value", "count", "best"]])
    assert cells(text, 2) == ["a_b", "1.235", "3", "True"]
    assert cells(text, 3) == ["c", DASH, DASH, "False"]


def test_numbers_stand_at_the_right_and_text_at_the_left() -> None:
    plain = FRAME[["name", "value", "count", "best"]]
    rule = cells(markdown(plain), 1)
    assert [side.startswith(":") for side in rule] == [True, False, False, True]
    assert [side.endswith(":") for side in rule] == [False, True, True, False]
    assert r"\begin{tabular}{lrrl}" in latex(plain, "x")
    empty = plain.iloc[:0]
    assert markdown(empty).splitlines()[1] == "|:---|---:|---:|:---|"
    assert r"\begin{tabular}{lrrl}" in latex(empty, "x")


@pytest.mark.parametrize(
    ("column", "values", "text"),
    [
        (Number("x"), (0.0625,), "0.0625"),
        (Number("x"), (1e-5,), "1e-05"),
        (Number("x", ".4f"), (0.25,), "0.2500"),
        (Number("x", "d"), (3,), "3"),
        (Number("x", "d"), (pd.NA,), DASH),
        (Number("x"), (math.nan,), DASH),
        (Spread("x"), (15.004, 0.6), "15.00 ± 0.60"),
        (Spread("x", digits=1), (95.68, 0.84), "95.7 ± 0.8"),
        (Spread("x"), (-0.001, 0.5), "0.00 ± 0.50"),  # no "-0.00"
        (Spread("x"), (8.6, math.nan), "8.60"),
        (Spread("x"), (math.nan, math.nan), DASH),
        (Estimate("x"), (0.98, 0.914, 1.0), "0.98 (0.91 to 1.00)"),
        (Estimate("x"), (0.25, math.nan, math.nan), "0.25"),
        (Estimate("x"), (math.nan, math.nan, math.nan), DASH),
    ],
)
def test_columns_write_their_parts(column: Column, values: tuple[Any, ...], text: str) -> None:
    frame = pd.DataFrame([dict(zip(column.sources(), values, strict=True))])
    table = Table(frame, [column])
    assert table.written()[column.heading].tolist() == [text]
    assert table.sides() == ["left"]


def test_a_table_shows_its_columns_and_keeps_its_numbers() -> None:
    table = Table(FRAME, [Column("name"), Spread("gap"), Estimate("value")])
    assert cells(markdown(table), 0) == ["name", "gap", "value"]
    assert cells(markdown(table), 2) == ["a_b", "0.00 ± 0.50", "1.23 (-1.25 to 1.25)"]
    assert cells(markdown(table), 3) == ["c", DASH, DASH]
    assert r"a\_b & 0.00 ± 0.50 & 1.23 (-1.25 to 1.25) \\" in latex(table, "x")
    assert "0.00 ± 0.50" in table._repr_html_()
    assert table.frame["gap"][0] == -0.001 and part("gap", "sd") in table.frame


def test_a_column_without_its_numbers_is_named() -> None:
    with pytest.raises(ValueError, match=r"value \(sd\)"):
        Table(FRAME, [Spread("value")])


def test_pipes_line_breaks_and_signs_break_nothing() -> None:
    frame = pd.DataFrame({"a|b": ["x | y", "two\nlines"], 2048: [1, 2]})
    text = markdown(frame)
    assert len(text.splitlines()) == 4
    assert "a\\|b" in text.splitlines()[0] and "x \\| y" in text and "two lines" in text
    assert "2048" in text.splitlines()[0]
    tex = latex(frame.rename(columns={"a|b": "50 % of_a"}), "5 %\nof A & B")
    assert r"50 \% of\_a" in tex and r"\caption{5 \% of A \& B}" in tex


def test_what_was_written_is_read_back() -> None:
    frame = pd.DataFrame({"a | b": ["x | y", "–"], "nats": [1.5, math.nan], "kept": ["", "z"]})
    read = read_markdown(markdown(frame))
    assert read.headings == ["a | b", "nats", "kept"] and read.sides == ["left", "right", "left"]
    assert read.rows[0] == ["x | y", "1.500", ""] and read.rows[1] == [DASH, DASH, "z"]
    assert read_markdown(markdown(frame[:0])).rows == []


@pytest.mark.parametrize(
    "text", ["", "| a |", "| a |\n|:--|\n| b | c |", "| a |\n| 1 |\n| 2 |", "| a |\n|  |\n| 2 |"]
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a table in Markdown"):
        read_markdown(text)
