"""Fields of rows: what is right is given back, every fault has its place."""

from typing import Any

import pytest

from sinklora.records.placed_fields import field_of, optional_text, texts_of

ROW: dict[str, Any] = {
    "id": 3,
    "right": True,
    "text": "",
    "texts": ["a", "b"],
    "blank": ["a", " "],
    "none": [],
}


def test_fields_come_as_they_are() -> None:
    assert [field_of(ROW, "id", int, "x"), field_of(ROW, "right", bool, "x")] == [3, True]
    assert field_of(ROW, "text", str, "x") == "" and texts_of(ROW, "texts", "x") == ("a", "b")


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("length", int, "no 'length'; there are 'id', 'right'"),
        ("id", str, "'id' is 3, expected str"),
        ("right", int, "'right' is True, expected int"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(name: str, kind: type, words: str) -> None:
    with pytest.raises(ValueError, match=f"^rows.jsonl, line 2: {words}"):
        field_of(ROW, name, kind, "rows.jsonl, line 2")
    with pytest.raises(ValueError, match=r"^x: no 'id'; there are no fields$"):
        field_of({}, "id", int, "x")


@pytest.mark.parametrize("text", ["\ud83d", "half \udc00 of one"])
def test_half_a_character_is_named_with_its_place(text: str) -> None:
    said = r"^rows.jsonl, line 2: 'text' holds '\\ud[8c][03][d0]', half a pair of surrogates"
    row = {"text": text, "texts": ["fine", text]}
    for read in (
        lambda: field_of(row, "text", str, "rows.jsonl, line 2"),
        lambda: optional_text(row, "text", "rows.jsonl, line 2"),
    ):
        with pytest.raises(ValueError, match=said):
            read()
    with pytest.raises(ValueError, match=r"^x: 'texts' holds"):
        texts_of(row, "texts", "x")
    assert field_of({"text": "\U0001f600 \0"}, "text", str, "x") == "\U0001f600 \0"


def test_a_text_may_be_missing_and_nothing_else() -> None:
    assert [optional_text(row, "input", "x") for row in ({}, {"input": None}, {"input": " "})] == [
        "",
        "",
        " ",
    ]
    for value in (0, False, [], 42):
        with pytest.raises(ValueError, match=r"^x: 'input' is .*, expected str$"):
            optional_text({"input": value}, "input", "x")


@pytest.mark.parametrize("name", ["blank", "none"])
def test_a_text_that_says_nothing_is_none(name: str) -> None:
    with pytest.raises(ValueError, match=f"^x: '{name}' is .*expected a list of at least one text"):
        texts_of(ROW, name, "x")
