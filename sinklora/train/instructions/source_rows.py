"""Rows of a source: a file, a folder of files, or a data set of the hub, each row with its place.

Read are `.jsonl` (also `.jsonl.gz`), `.json` (one list), `.csv` and `.parquet`. Code from the hub is never
run: a data set there has to consist of plain files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from sinklora.records.files import file_hash
from sinklora.records.jsonl import json_lines
from sinklora.records.row_files import PlacedRows, csv_rows, hub_rows, json_rows, parquet_rows

HUB = "hub:"


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, or a data set of the hub by name, whose `sha256` is "" (it is not kept)."""

    name: str
    sha256: str
    rows: Callable[[], PlacedRows]


def source_files(source: str, place: str) -> list[SourceFile]:
    """The files of a source, in the order of their names; `place`: a path, or hub:NAME.

    Raises FileNotFoundError where there is none, ValueError for files of another kind, naming `source`.
    """
    if place.startswith(HUB):
        name = place.removeprefix(HUB)
        return [SourceFile(name, "", lambda: hub_rows(name, "train", f"source {source}"))]
    path = Path(place).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"source {source}: {place!r} is not there; give a file, a folder or {HUB}NAME"
        )
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    readable = [file for file in paths if file.is_file() and _ending(file) in READERS]
    if not readable:
        raise ValueError(f"source {source}: {place!r} holds none of {', '.join(READERS)}")
    root = path if path.is_dir() else path.parent
    return [_source_file(file, file.relative_to(root).as_posix()) for file in readable]


def _source_file(file: Path, name: str) -> SourceFile:
    return SourceFile(name, file_hash(file), lambda: READERS[_ending(file)](file))


def _ending(file: Path) -> str:
    return "".join(file.suffixes[-2:]) if file.suffix == ".gz" else file.suffix


READERS: Mapping[str, Callable[[Path], PlacedRows]] = MappingProxyType(
    {
        ".jsonl": json_lines,
        ".jsonl.gz": json_lines,
        ".json": json_rows,
        ".csv": csv_rows,
        ".parquet": parquet_rows,
    }
)
