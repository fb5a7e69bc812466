"""Files in LongBench's format, written as its own are."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sinklora.evaluate.longbench.records import Record


def fields_of(record: Record) -> dict[str, Any]:
    """The fields of a record as LongBench's files name them."""
    return {"_id" if name == "id" else name: value for name, value in asdict(record).items()}


def write_records(path: Path, records: Iterable[Record]) -> None:
    """A file of one record a line."""
    lines = (json.dumps(fields_of(record), ensure_ascii=False) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
