"""Rows of a source: a file, a folder of files, or a data set of the hub, each row with its place.

Read are `.jsonl` (also `.jsonl.gz`), `.json` (one list), `.csv` and `.parquet`. Code from the hub is never
run: a data set there has to consist of plain files.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sinklora.records.files import file_hash
from sinklora.records.jsonl import json_lines

HUB = "hub:"

CSV_BLOCK = 2**26  # bytes that are read at once: more than any row has

Placed = Iterator[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, or a data set of the hub by name, whose `sha256` is "" (it is not kept)."""

    name: str
    sha256: str
    rows: Callable[[], Placed]


def source_files(source: str, place: str) -> list[SourceFile]:
    """The files of a source, in the order of their names; `place`: a path, or hub:NAME.

    Raises FileNotFoundError where there is none, ValueError for files of another kind, naming `source`.
    """
    if place.startswith(HUB):
        name = place.removeprefix(HUB)
        return [SourceFile(name, "", lambda: _hub_rows(source, name))]
    path = Path(place).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"source {source}: {place!r} is not there; give a file, a folder or {HUB}NAME"
        )
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    readable = [file for file in found if file.is_file() and _ending(file) in READERS]
    if not readable:
        raise ValueError(f"source {source}: {place!r} holds none of {', '.join(READERS)}")
    root = path if path.is_dir() else path.parent
    return [_source_file(file, file.relative_to(root).as_posix()) for file in readable]


def _source_file(file: Path, name: str) -> SourceFile:
    return SourceFile(name, file_hash(file), lambda: READERS[_ending(file)](file))


def _ending(file: Path) -> str:
    return "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix


def _json_rows(path: Path) -> Placed:
    try:
        rows = json.loads(path.read_bytes().decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON in UTF-8 ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a {type(rows).__name__}, not a list of objects")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, entry {number}: a {type(row).__name__}, not an object")
        yield f"{path}, entry {number}", row


def _csv_rows(path: Path) -> Placed:
    import pyarrow as pa
    from pyarrow import csv

    read = csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK)
    parse = csv.ParseOptions(newlines_in_values=True)
    number = 0
    try:
        with csv.open_csv(path, read, parse) as reader:
            names = reader.schema.names
        as_text = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        with csv.open_csv(path, read, parse, as_text) as reader:
            for batch in reader:
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: damaged ({reason:.200})") from error


def _parquet_rows(path: Path) -> Placed:
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged behind row {number} ({error})") from error


def _hub_rows(source: str, name: str) -> Placed:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train", streaming=True)
    except (ConnectionError, FileNotFoundError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"source {source}: no data set {name!r} of plain files with a split 'train' on the hub "
            f"({reason}); download its files and give their folder"
        ) from error
    for number, row in enumerate(rows, 1):
        yield f"{name}, row {number}", dict(row)


READERS: Mapping[str, Callable[[Path], Placed]] = MappingProxyType(
    {
        ".jsonl": json_lines,
        ".jsonl.gz": json_lines,
        ".json": _json_rows,
        ".csv": _csv_rows,
        ".parquet": _parquet_rows,
    }
)
