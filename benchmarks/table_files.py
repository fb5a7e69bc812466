"""A benchmark's table as files: numbers, what a reader sees, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sinklora.records.files import atomic_write, write_json
from sinklora.records.provenance import current_provenance


def write_table(
    folder: Path, name: str, table: pd.DataFrame, text: str, settings: Mapping[str, Any], **more: Any
) -> None:
    """Write `name.csv`, `name.md` and, with settings, versions and machine, `name.json`; print the text."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{name}.csv", table.to_csv(index=False))
    atomic_write(folder / f"{name}.md", text)
    record = {"parameters": dict(settings), **more, **current_provenance()}
    write_json(folder / f"{name}.json", record)
    print(f"\n{name}\n\n{text}")
