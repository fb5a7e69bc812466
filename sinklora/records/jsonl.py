"""Files of one JSON object a line: read with a place for every fault, written whole or not at all."""

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from sinklora.records.damage import DAMAGED_GZIP
from sinklora.records.files import atomic_write

ZSTD_BLOCK = 2**20  # bytes of text that are unpacked at once


def json_lines(
    path: Path, content: bytes | None = None, *, skip_blank: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place ("file, line n") and JSON object of each line of `content`, by default of what `path` holds.

    A file whose name ends in .gz or .zst is unpacked. Only a newline ends a line: text may hold other
    separators. With `skip_blank` lines without anything on them are passed over.
    Raises ValueError with the place.
    """
    with _opened(path) if content is None else BytesIO(content) as file:
        number = 0
        while True:
            place = f"{path}, line {number + 1}"
            try:
                line = file.readline()
            except DAMAGED_GZIP as error:
                raise ValueError(f"{place}: the packed file is damaged ({error})") from error
            if not line:
                return
            number += 1
            if line.strip() or not skip_blank:
                yield place, _object(line, place)


def write_lines(path: Path, rows: Iterable[Mapping[Any, Any]]) -> None:
    """Write rows as the lines of a file, atomically."""
    atomic_write(path, "".join(map(json_line, rows)))


def json_line(row: Mapping[Any, Any]) -> str:
    """A row as a line, with the newline that ends it."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def _opened(path: Path) -> Any:
    if path.suffix == ".zst":
        return _unpacked_zstd(path)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _unpacked_zstd(path: Path) -> BufferedReader:
    import pyarrow as pa  # Python itself unpacks it from 3.14 on

    return BufferedReader(pa.CompressedInputStream(pa.OSFile(str(path)), "zstd"), ZSTD_BLOCK)


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        fields = json.loads(line.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{place}: not a line of JSON ({error})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{place}: a {type(fields).__name__}, not a JSON object")
    return fields
