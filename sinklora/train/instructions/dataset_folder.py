"""A data set as a folder: each split as parquet and as jsonl, a record, and a card. Whole or not there."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sinklora.lora.folder_replacement import replaced_files, valid_folder
from sinklora.records.files import atomic_write, write_json
from sinklora.records.jsonl import write_lines
from sinklora.records.row_files import parquet_bytes, parquet_frame
from sinklora.records.tables import Column, Number, Table, markdown
from sinklora.train.instructions.lengths import length_table

CARD, RECORD = "README.md", "record.json"


def write_dataset(
    folder: Path,
    splits: Mapping[str, pd.DataFrame],
    *,
    title: str,
    about: Sequence[str],
    record: Mapping[str, Any],
    more: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Write splits of examples (with lengths) and what is known of them; returns the folder.

    `about`: the paragraphs of the card in front of its tables; `more`: further jsonl files by name. All files
    take the place of those of the same names together: a build that is killed leaves what was there.
    """
    with replaced_files(folder) as new:
        for name, examples in splits.items():
            atomic_write(new / f"{name}.parquet", parquet_bytes(examples))
            write_lines(new / f"{name}.jsonl", examples.to_dict("records"))
        for name, rows in (more or {}).items():
            write_lines(new / f"{name}.jsonl", rows)
        write_json(new / RECORD, record)
        atomic_write(new / CARD, _card(splits, title, about))
    return folder


def read_split(folder: Path, split: str = "train") -> pd.DataFrame:
    """The examples of a split of a folder that `write_dataset` wrote; FileNotFoundError where it has none,
    ValueError for a damaged file.
    """
    path = valid_folder(folder) / f"{split}.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `sinklora data` builds data sets")
    return parquet_frame(path)


def check_out(out: Path) -> None:
    """Raise ValueError where no folder can be written there, before any work."""
    there = next(place for place in (out, *out.parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"out={str(out)!r}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"out={str(out)!r}: {there} cannot be written; give another folder")


def _card(splits: Mapping[str, pd.DataFrame], title: str, about: Sequence[str]) -> str:
    """What a reader and the hub's viewer are told: which files are which split, and what is in them."""
    files = "".join(f"      - split: {name}\n        path: {name}.parquet\n" for name in splits)
    head = f"---\nlicense: other\nconfigs:\n  - config_name: default\n    data_files:\n{files}---\n"
    parts = [f"{head}\n# {title}", *about]
    for name, examples in splits.items():
        sources = examples.groupby(["source", "licence"], sort=False).size().reset_index(name="examples")
        parts += [f"## {name}", markdown(shown_lengths(length_table(examples))), markdown(sources)]
    return "\n\n".join(parts) + "\n"


def shown_lengths(table: pd.DataFrame) -> Table:
    """A table of lengths as a reader sees it: whole tokens or words, shares with one decimal."""
    columns = [
        Number(name, ".1f" if name.endswith("(%)") else ",.0f") if name != "kind" else Column(name)
        for name in table.columns
    ]
    return Table(table, columns)
