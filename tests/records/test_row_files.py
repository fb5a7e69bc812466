"""Rows of files and data sets: every format gives the same, every fault has its place."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklora.records.row_files import (
    PlacedRows,
    csv_rows,
    hub_rows,
    json_rows,
    parquet_bytes,
    parquet_frame,
    parquet_rows,
)

ROWS = [{"name": "a", "text": "one\ntwo"}, {"name": "b", "text": "three"}]


def write(path: Path) -> Path:
    if path.suffix == ".parquet":
        pd.DataFrame(ROWS).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize(
    ("ending", "read", "word"),
    [("json", json_rows, "entry"), ("csv", csv_rows, "row"), ("parquet", parquet_rows, "row")],
    ids=["json", "csv", "parquet"],
)
def test_rows_come_with_their_places(
    tmp_path: Path, ending: str, read: Callable[[Path], PlacedRows], word: str
) -> None:
    path = write(tmp_path / f"rows.{ending}")
    assert list(read(path)) == [(f"{path}, {word} {n}", row) for n, row in enumerate(ROWS, 1)]


def test_a_folder_in_the_hubs_format_is_read_like_a_data_set(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet")
    assert list(hub_rows(str(tmp_path), "train", "source")) == [
        (f"{tmp_path}, row {n}", row) for n, row in enumerate(ROWS, 1)
    ]


@pytest.mark.parametrize("ending", ["parquet", "jsonl.gz"])
def test_a_data_set_that_is_damaged_in_the_middle_is_named(tmp_path: Path, ending: str) -> None:
    path, rows = tmp_path / f"train.{ending}", pd.DataFrame({"text": [f"{n**3} words" for n in range(2000)]})
    if ending == "parquet":
        rows.to_parquet(path, compression="gzip")
    else:
        rows.to_json(path, orient="records", lines=True)
    whole = path.read_bytes()
    for place in range(len(whole) // 3, 2 * len(whole) // 3, 400):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=rf"{tmp_path}: cannot be read behind row \d+ \("):
            list(hub_rows(str(tmp_path), "train", "source"))


def test_a_parquet_file_that_is_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"text": [f"{n**3} words" for n in range(2000)]}).to_parquet(path, compression="gzip")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"damaged" + whole[len(whole) // 2 + 7 :])
    with pytest.raises(ValueError, match=r"rows\.parquet: damaged behind row \d"):
        list(parquet_rows(path))


def read_frame(path: Path) -> list[dict[str, Any]]:
    return parquet_frame(path).to_dict("records")


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in parquet_rows(path)]


@pytest.mark.parametrize("read", [read_frame, read_rows])
def test_text_of_a_parquet_file_that_is_no_utf8_is_named(
    tmp_path: Path, read: Callable[[Path], list[dict[str, Any]]]
) -> None:
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"text": [f"what is number {n**3}" for n in range(50)]}).to_parquet(path, compression=None)
    path.write_bytes(path.read_bytes().replace(b"what is number 8", b"\xffhat is number 8", 1))
    with pytest.raises(ValueError, match=r"rows\.parquet: damaged") as raised:
        read(path)
    assert not isinstance(raised.value, UnicodeDecodeError)


@pytest.mark.parametrize("read", [read_frame, read_rows])
def test_a_wrong_byte_of_what_was_written_is_named_wherever_that_is(
    tmp_path: Path, read: Callable[[Path], list[dict[str, Any]]]
) -> None:
    """In all pages of all columns; the notes behind them, names of columns for example, have no checksums."""
    path = tmp_path / "rows.parquet"
    frame = pd.DataFrame({"text": [f"number {n**3}" for n in range(30)], "loss": [n / 7 for n in range(30)]})
    whole, damaged = parquet_bytes(frame), 0
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x80]) + whole[place + 1 :])
        is_page = place < pages_end(whole)
        try:
            rows = read(path)
            assert not is_page or rows == frame.to_dict("records")
        except ValueError as error:
            assert str(error).startswith(f"{path}: damaged")
            damaged += is_page
    assert damaged > 0.8 * pages_end(whole) / 7


def pages_end(content: bytes) -> int:
    """Where the notes of a parquet file begin."""
    return len(content) - 8 - int.from_bytes(content[-8:-4], "little")


def test_a_data_set_that_is_not_there_is_named_by_who_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto it")

    monkeypatch.setattr("datasets.load_dataset", offline)
    words = r"^source nq: no data set 'some/books' of plain files with a split 'test' .*\(no route\)"
    with pytest.raises(FileNotFoundError, match=words):
        next(hub_rows("some/books", "test", "source nq"))
