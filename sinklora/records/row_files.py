"""Files of rows with columns, and data sets of the hub: each row with the place that a fault is told by.

Files of one JSON object a line are read in `jsonl`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinklora.records.damage import DAMAGED_GZIP

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

CSV_BLOCK = 2**26  # bytes that are read at once: more than any row has

PlacedRows = Iterator[tuple[str, dict[str, Any]]]


def json_rows(path: Path) -> PlacedRows:
    """The objects of a file that holds a list of them; ValueError with the place of what is none."""
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


def csv_rows(path: Path) -> PlacedRows:
    """The rows of a csv file, every value as text; ValueError for a damaged one."""
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


def parquet_rows(path: Path) -> PlacedRows:
    """The rows of a parquet file; ValueError for a damaged one, with the last row that was whole."""
    from pyarrow import ArrowException

    number = 0
    try:
        for batch in _whole_batches(path):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged behind row {number} ({error})") from error


def _whole_batches(path: Path) -> "Iterator[pa.RecordBatch]":
    """64 rows at a time, compared with the checksums of their pages, if there are any, and each value
    checked: what is read without that fails when it is used, or is other text.
    """
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path, page_checksum_verification=True) as file:
        for batch in file.iter_batches(batch_size=64):
            batch.validate(full=True)
            yield batch


def parquet_frame(path: Path) -> "pd.DataFrame":
    """A parquet file as a table; ValueError for a damaged one."""
    import pandas as pd
    from pyarrow import ArrowException

    try:
        for _ in _whole_batches(path):
            pass
        return pd.read_parquet(path)
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:  # the last: of pandas' notes
        raise ValueError(f"{path}: damaged ({error})") from error


def parquet_bytes(frame: "pd.DataFrame") -> bytes:
    """A table as a parquet file, whose pages have checksums: a reader knows a wrong byte in them."""
    content = BytesIO()
    frame.to_parquet(content, engine="pyarrow", index=False, compression="zstd", write_page_checksum=True)
    return content.getvalue()


def hub_rows(name: str, split: str, asked: str) -> PlacedRows:
    """The rows of a split of a data set of the hub, or of a local folder in its format, as they come in.

    Code from the hub is never run. Raises FileNotFoundError, which begins with what `asked` for it, where
    there is no such data set of plain files; ValueError where one of them is damaged or comes in no further.
    """
    from pyarrow import ArrowException

    number = 0
    try:
        for row in _hub_stream(name, split, asked):
            number += 1
            yield f"{name}, row {number}", dict(row)
    except FileNotFoundError:
        raise
    except (ArrowException, ValueError, *DAMAGED_GZIP) as error:
        raise ValueError(f"{name}: cannot be read behind row {number} ({error})") from error


def _hub_stream(name: str, split: str, asked: str) -> Iterable[Mapping[str, Any]]:
    from datasets import load_dataset

    try:
        rows: Iterable[Mapping[str, Any]] = load_dataset(name, split=split, streaming=True)
    except (ConnectionError, FileNotFoundError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{asked}: no data set {name!r} of plain files with a split {split!r} on the hub ({reason}); "
            "download its files and give their folder"
        ) from error
    return rows
