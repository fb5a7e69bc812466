"""The values that the paper published, as `data/paper_numbers.csv` holds them."""

import re
from pathlib import Path

import pandas as pd

PAPER_NUMBERS = Path("data/paper_numbers.csv")

COLUMNS = ["item", "row", "column", "value", "source"]

KINDS = {"Table": "Table", "Tables": "Table", "Fig": "Figure", "Figs": "Figure", "Figure": "Figure"}

NAMED = re.compile(r"\b(Tables?|Figs?|Figures?)\.? (\d+(?:(?:, | and |, and )\d+)*)")


def paper_values(item_prefix: str, path: Path = PAPER_NUMBERS) -> pd.DataFrame:
    """Published values of the items whose names start with a prefix: columns item, row, column, value,
    source, all text.

    "Table 1" is not the beginning of "Table 10". Raises ValueError where there are none.
    """
    published = pd.read_csv(path, dtype=str)
    values = published[published.item.str.match(rf"{re.escape(item_prefix)}(?!\d)")]
    if not item_prefix or values.empty:
        raise ValueError(
            f"item_prefix={item_prefix!r}: no published value; {path} has {sorted(published.item.unique())}"
        )
    return values.reset_index(drop=True)


def published_value(
    item_prefix: str, row: str, column: str | None = None, path: Path = PAPER_NUMBERS
) -> float:
    """One published value, by its row and column; a row of one value needs no column.

    Raises ValueError where there is none, or more than one, and where it is no number.
    """
    values = paper_values(item_prefix, path)
    chosen = values[(values.row == row) & ((values.column == column) | (column is None))]
    if len(chosen) != 1:
        known = sorted(set(zip(values.row, values.column, strict=True)))
        raise ValueError(f"row={row!r}, column={column!r}: {len(chosen)} values; {item_prefix} has {known}")
    return float(chosen.value.iloc[0])


def named_items(paper_item: str) -> list[str]:
    """The items that a phrase names, as the file writes them: "Tables 1 and 2", "Fig. 1 (perplexity)"."""
    return [
        f"{KINDS.get(kind, 'Figure')} {number}"
        for kind, numbers in NAMED.findall(paper_item)
        for number in re.findall(r"\d+", numbers)
    ]


def describe(paper_item: str, path: Path = PAPER_NUMBERS) -> str:
    """The published values of the items that a phrase names, in one line; says so where there are none.

    Empty for a phrase that names no table or figure of the paper.
    """
    described = []
    for item in named_items(paper_item):
        try:
            values = paper_values(item, path)
        except ValueError:
            described.append(f"{item}: no value on record")
            continue
        rows = [
            f"{row} " + ", ".join(f"{v} ({c})" for v, c in zip(group.value, group.column, strict=True))
            for row, group in values.groupby("row", sort=False)
        ]
        described.append(f"{values.item[0]}: {'; '.join(rows)}")
    return ". ".join(described)
