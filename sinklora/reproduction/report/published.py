"""The values that the paper published, as `data/paper_numbers.csv` holds them."""

import re
from functools import lru_cache
from pathlib import Path

import pandas as pd

from sinklora.records.tables import DASH, markdown

PAPER_NUMBERS = Path("data/paper_numbers.csv")

COLUMNS = ["item", "row", "column", "value", "source"]

KINDS = {"Table": "Table", "Tables": "Table", "Fig": "Figure", "Figs": "Figure", "Figure": "Figure"}

NAMED = re.compile(r"\b(Tables?|Figs?|Figures?)\.? (\d+(?:(?:, | and |, and )\d+)*)")


def paper_values(item_prefix: str, path: Path = PAPER_NUMBERS) -> pd.DataFrame:
    """Published values of the items whose names start with a prefix: columns item, row, column, value,
    source, all text.

    "Table 1" is not the beginning of "Table 10". Raises ValueError where there are none.
    """
    published = _read(path.resolve(), path.stat().st_mtime_ns)
    values = published[published.item.str.match(rf"{re.escape(item_prefix)}(?!\d)")]
    if not item_prefix or values.empty:
        raise ValueError(
            f"item_prefix={item_prefix!r}: no published value; {path} has {sorted(published.item.unique())}"
        )
    return values.reset_index(drop=True)


@lru_cache
def _read(path: Path, _modified: int) -> pd.DataFrame:
    """All that a file holds; read once, however often it is asked for a value."""
    return pd.read_csv(path, dtype=str)


def published_text(item_prefix: str, row: str, column: str | None = None, path: Path = PAPER_NUMBERS) -> str:
    """One published value as it was printed, by its row and column; a row of one value needs no column.

    Raises ValueError where there is none, or more than one.
    """
    values = paper_values(item_prefix, path)
    chosen = values[(values.row == row) & ((values.column == column) | (column is None))]
    if len(chosen) != 1:
        known = sorted(set(zip(values.row, values.column, strict=True)))
        raise ValueError(f"row={row!r}, column={column!r}: {len(chosen)} values; {item_prefix} has {known}")
    return str(chosen.value.iloc[0])


def published_value(item_prefix: str, row: str, column: str | None = None) -> float:
    """The same as a number. Raises ValueError where it is none, as well."""
    return float(published_text(item_prefix, row, column))


def published_table(item: str, path: Path = PAPER_NUMBERS) -> str:
    """All published values of an item in Markdown, as they were printed; empty where none is on record."""
    try:
        values = paper_values(item.replace("Fig.", "Figure"), path)
    except ValueError:
        return ""
    once = values.drop_duplicates(["row", "column"])
    wide = once.pivot(index="row", columns="column", values="value").fillna(DASH)
    wide = wide.loc[once.row.unique(), once.column.unique()].rename_axis(columns=None)
    return markdown(wide.reset_index(names="published"))


def named_items(paper_item: str) -> list[str]:
    """The items that a phrase names, as the file writes them: "Tables 1 and 2", "Fig. 1 (perplexity)"."""
    return [
        f"{KINDS.get(kind, 'Figure')} {number}"
        for kind, numbers in NAMED.findall(paper_item)
        for number in re.findall(r"\d+", numbers)
    ]
