"""Rows of a source: a file, a folder of files, or a data set of the hub, each row with its place.

Read are `.jsonl` (also `.jsonl.gz` and `.jsonl.zst`), `.json` (one list), `.csv` and `.parquet`. Code from
the hub is never run: a data set there has to consist of plain files.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from sinklora.records.files import file_hash, name_in, visible_files
from sinklora.records.jsonl import json_lines
from sinklora.records.row_files import PlacedRows, csv_rows, hub_rows, json_rows, parquet_rows

HUB = "hub:"

HELD_OUT = re.compile(r"(?<![a-z])(?:dev|val|valid|validation|test)(?![a-z])", re.IGNORECASE)  # in names

PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".br", ".zip", ".tar", ".tgz", ".7z")


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, or a data set of the hub by name, whose `sha256` is "" (it is not kept)."""

    name: str
    sha256: str
    rows: Callable[[], PlacedRows]


class SourceFiles(NamedTuple):
    """The files of a source in the order of their names, and the names of those that are not read."""

    files: list[SourceFile]
    passed_over: list[str]


def source_files(source: str, place: str) -> SourceFiles:
    """The files of a source; `place`: a path, or hub:NAME.

    Of a folder those named as held out (dev, validation, test) are passed over, unless it has no others.
    Raises FileNotFoundError where there is none, ValueError for files of another kind and for rows in a file
    that is packed in a way that is not read, naming `source`.
    """
    if place.startswith(HUB):
        name = place.removeprefix(HUB)
        return SourceFiles([SourceFile(name, "", lambda: hub_rows(name, "train", f"source {source}"))], [])
    path = Path(place).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"source {source}: {place!r} is not there; give a file, a folder or {HUB}NAME"
        )
    root, paths = (path, visible_files(path)) if path.is_dir() else (path.parent, [path])
    named = {name_in(root, file): file for file in paths}
    of_rows = {name: file for name, file in named.items() if _ending(file) in READERS or _is_packed(file)}
    if not of_rows:
        raise ValueError(f"source {source}: {place!r} holds none of {', '.join(READERS)}")
    taken = {name: file for name, file in of_rows.items() if not HELD_OUT.search(name)} or of_rows
    if packed := [name for name, file in taken.items() if _is_packed(file)]:
        raise ValueError(f"source {source}: {packed[0]!r} is packed; unpack it, or take it out of {place!r}")
    files = [_source_file(file, name) for name, file in taken.items()]
    return SourceFiles(files, [name for name in named if name not in taken])


def _is_packed(file: Path) -> bool:
    """Whether a file holds rows, by its name, and is packed in a way that no reader unpacks."""
    holds_rows = any(suffix in READERS for suffix in file.suffixes)
    return holds_rows and file.suffix in PACKED and _ending(file) not in READERS


def _source_file(file: Path, name: str) -> SourceFile:
    return SourceFile(name, file_hash(file), lambda: READERS[_ending(file)](file))


def _ending(file: Path) -> str:
    return "".join(file.suffixes[-2:]) if file.suffix in PACKED else file.suffix


READERS: Mapping[str, Callable[[Path], PlacedRows]] = MappingProxyType(
    {
        ".jsonl": json_lines,
        ".jsonl.gz": json_lines,
        ".jsonl.zst": json_lines,
        ".json": json_rows,
        ".csv": csv_rows,
        ".parquet": parquet_rows,
    }
)
