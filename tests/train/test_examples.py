"""Examples from files: Alpaca's columns and messages, every fault with its place."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklora.train.examples import Example, ExampleSource, content_hash, read_examples

ALPACA = {"instruction": "Read this.\n\nWho?", "output": "She.", "licence": "CC0"}
TURNS = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}


def written(folder: Path, kind: str, rows: list[Any]) -> str:
    path = folder / f"examples.{kind}"
    if kind == "parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    return f"{kind}:{path}"


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("row", [ALPACA, TURNS], ids=["alpaca", "messages"])
def test_every_format_holds_the_same(tmp_path: Path, kind: str, row: dict[str, Any]) -> None:
    examples = read_examples(ExampleSource(written(tmp_path, kind, [row, row, row]), limit=2))
    said = (("user", "Read this.\n\nWho?"), ("assistant", "She."))
    assert [e.turns for e in examples] == [
        said if row is ALPACA else (("user", "Hi"), ("assistant", "Ho"))
    ] * 2
    assert len({e.place for e in examples}) == 2 and str(tmp_path) in examples[0].place


def test_an_input_belongs_to_the_instruction(tmp_path: Path) -> None:
    rows = [ALPACA | {"input": value} for value in ("A page.", "", " ", None)]
    first, second, *others = read_examples(ExampleSource(written(tmp_path, "jsonl", rows)))
    assert all(example.turns == second.turns for example in others)
    assert (
        first.turns[0][1] == "Read this.\n\nWho?\n\nA page." and second.turns[0][1] == ALPACA["instruction"]
    )


def test_the_hash_is_of_what_is_said() -> None:
    one, other = (Example(place, (("user", "a"), ("assistant", "b"))) for place in "xy")
    changed = Example("x", (("user", "a"), ("assistant", "c")))
    assert content_hash([one]) == content_hash([other]) != content_hash([changed])


@pytest.mark.parametrize(
    ("kind", "rows", "words"),
    [
        ("jsonl", [ALPACA, {"instruction": "x"}], r"line 2: no 'output'; there are 'instruction'"),
        ("jsonl", [[1]], "line 1: a list, not a JSON object"),
        ("json", {"a": 1}, "a dict, not a list of objects"),
        ("json", [3], "entry 1: a int, not an object"),
        ("jsonl", [{"messages": "hi"}], "'messages' is 'hi', expected a list of role and content"),
        ("jsonl", [{"messages": ["hi"]}], "'messages' holds 'hi'"),
        ("jsonl", [{"messages": [{"role": "user"}]}], "no 'content'; there are 'role'"),
        ("jsonl", [ALPACA, ALPACA | {"input": 42}], "line 2: 'input' is 42, expected str"),
        ("json", [ALPACA | {"input": ["a", "b"]}], r"entry 1: 'input' is \['a', 'b'\], expected str"),
        ("json", [ALPACA | {"input": 0}], "entry 1: 'input' is 0, expected str"),
        ("jsonl", [ALPACA, ALPACA | {"output": "a \ud83d"}], r"line 2: 'output' holds '\\ud83d', half"),
        ("jsonl", [{"messages": [{"role": "user", "content": "\ud83d"}]}], "line 1: 'content' holds"),
        ("jsonl", [], "holds no examples"),
    ],
)
def test_damaged_rows_are_named(tmp_path: Path, kind: str, rows: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_examples(ExampleSource(written(tmp_path, kind, rows)))


def test_a_torn_line_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "torn.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instr')
    with pytest.raises(ValueError, match=r"torn.jsonl, line 2: not a line of JSON"):
        read_examples(ExampleSource(f"jsonl:{tmp_path / 'torn.jsonl'}"))
    with pytest.raises(FileNotFoundError, match="is not a file; give a parquet file"):
        read_examples(ExampleSource(f"parquet:{tmp_path / 'none.parquet'}"))
    with pytest.raises(ValueError, match="source='csv:x': expected one of jsonl:…, json:…"):
        ExampleSource("csv:x")


def test_a_file_has_no_splits() -> None:
    with pytest.raises(ValueError, match=r"split='validation': 'jsonl:a\.jsonl' has no splits"):
        ExampleSource("jsonl:a.jsonl", split="validation")
    assert ExampleSource("hub:a/b", split="validation").split == "validation"
