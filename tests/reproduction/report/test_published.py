"""Published values: read from the csv by item, row and column, and typed nowhere else."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklora.reproduction.ablations.tables import PAPER_ROWS
from sinklora.reproduction.efficiency.study import PAPER_RATIOS
from sinklora.reproduction.report.paper_items import PAPER_ITEMS
from sinklora.reproduction.report.published import PAPER_NUMBERS, paper_values, published_value

NOTEBOOKS = sorted(Path("notebooks").glob("*.ipynb"))
SOURCES = sorted(Path("sinklora/reproduction").rglob("*.py"))
EVERYDAY = {1.0, 1.5}  # also a width, a full share


def published_numbers() -> set[float]:
    """All values on record, shares in per cent as well."""
    values = pd.read_csv(PAPER_NUMBERS)
    numbers = {float(value) for value in values.value if re.fullmatch(r"[\d.]+", value)}
    shares = values[values.column == "share"].value.astype(float)
    return (numbers | {round(100 * share, 9) for share in shares}) - EVERYDAY


def cells(path: Path, kind: str) -> list[str]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def typed_numbers(source: str) -> list[Any]:
    """Numbers in a program, and those in its texts that have decimals or count per cent."""
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    numbers = [value for value in constants if type(value) in (int, float)]
    for text in (value for value in constants if isinstance(value, str)):
        numbers += [float(number) for number in re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])|\b\d+(?= %)", text)]
    return numbers


def test_a_value_is_found_by_row_and_column() -> None:
    assert published_value("Table 7", "SF-Attn") == 8.64
    assert published_value("Table 2", "SF-Attn 8B Llama3", "6144") == 4.86
    with pytest.raises(ValueError, match="3 values"):
        published_value("Table 2", "SF-Attn 8B Llama3")
    with pytest.raises(ValueError, match="row='SF'"):
        published_value("Table 7", "SF")
    with pytest.raises(ValueError, match="Table 99"):
        published_value("Table 99", "SF-Attn")


def test_every_row_that_is_looked_up_is_on_record() -> None:
    for item, rows in PAPER_ROWS.items():
        assert {published_value(item, row) for row in rows.values()} == set(
            paper_values(item).value.astype(float)
        )
    shares = [f"{pattern} share of full attention's improvement" for pattern in ("SF-Attn", "S2-Attn")]
    assert [published_value("Abstract", row) for row in shares] == [0.92, 0.39]
    assert all(item.published() for item in PAPER_ITEMS if item.keys)
    assert [published_value("Figure 1", row) for row in PAPER_RATIOS.values()] == [1.8, 1.8]


def test_no_published_value_is_typed_in_a_program() -> None:
    found = {}
    for path in [*SOURCES, *NOTEBOOKS]:
        programs = cells(path, "code") if path.suffix == ".ipynb" else [path.read_text(encoding="utf-8")]
        typed = {number for program in programs for number in typed_numbers(program)}
        # Of whole numbers only the abstract's shares in per cent are telling.
        found[str(path)] = {n for n in typed & published_numbers() if type(n) is float or n in (39, 92)}
    assert {path: numbers for path, numbers in found.items() if numbers} == {}


def test_typed_values_are_recognised() -> None:
    assert set(typed_numbers("a = {'sf': '8.64'}\nb = 92\nc = f'near {x} of 39 %'")) == {8.64, 92, 39.0}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_values_of_a_claim_are_on_record(path: Path) -> None:
    claims = [
        part for text in cells(path, "markdown") for part in text.split("\n\n") if "paper's claim" in part
    ]
    said = re.findall(r"(?<![\d.-])\d+\.\d+(?![\d.])|\b\d+(?= %)", " ".join(claims))
    assert {float(number) for number in said} - published_numbers() == set()
