"""The committed tables: numbers in the csv files, and the same text made of the committed measurements."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sinklora.records.tables import Table, latex, markdown
from sinklora.reproduction.ablations.study import attention_costs, sweep_methods
from sinklora.reproduction.ablations.tables import schedule_table, sweep_table
from sinklora.reproduction.extension.tables import table, with_paper
from sinklora.reproduction.report.published import paper_values
from sinklora.train.spec import TrainSpec

FOLDER = Path("results/cpu/tables")
WRITTEN = re.compile(r"\d ± \d|\d to -?\d|^\d+\.\d+ \(|^–$")
SWEEPS: dict[str, tuple[str, list[float]]] = {
    "sweep_sinks": ("sink_tokens", [0, 1, 2, 4, 8, 16]),
    "sweep_shifted": ("shifted", [0.0, 0.25, 0.5]),
    "sweep_group_size": ("group_size", [0.0625, 0.125, 0.25, 0.5]),
}
METHODS = ["full", "short", "s2", "s2_wrapped", "sf", "sf_shifted", "sf_then_full"]


def measurements(name: str) -> pd.DataFrame:
    return pd.read_csv(FOLDER / f"{name}.csv").astype({"seed": "Int64"})


def swept(field: str, values: list[float]) -> Table:
    methods = sweep_methods(field, values)
    costs = attention_costs(TrainSpec(context=2048, steps=60), methods.values())
    return sweep_table(measurements("ablation_measurements"), 2048, field, methods, costs)


def made(name: str) -> Table:
    """A table made of the measurements that are committed beside it."""
    if name in ("table1", "table2"):
        item = name.replace("table", "Table ")
        here = table(measurements("perplexity_measurements"), item, METHODS, 512, 2048)
        return here if name == "table1" else with_paper(here, paper_values(item), 2048)
    if name == "schedules":
        schedules = ["sf", "sf_then_full", "sf_growing"]
        costs = attention_costs(TrainSpec(context=2048, steps=60), schedules)
        return schedule_table(measurements("ablation_measurements"), 2048, schedules, costs)
    return swept(*SWEEPS[name])


@pytest.mark.parametrize("path", sorted(Path("results").glob("*/tables/*.csv")), ids=lambda p: p.stem)
def test_a_csv_holds_numbers_not_their_text(path: Path) -> None:
    cells = pd.read_csv(path, dtype=str).stack().dropna()
    assert [cell for cell in cells if WRITTEN.search(cell)] == []


@pytest.mark.parametrize("name", ["table1", "table2", "schedules", *SWEEPS])
def test_the_committed_text_is_made_of_the_committed_measurements(name: str) -> None:
    here = made(name)
    assert markdown(here) + "\n" == (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    record = json.loads((FOLDER.parent / "provenance" / f"{name}.json").read_text(encoding="utf-8"))
    assert latex(here, record["caption"]) == (FOLDER / f"{name}.tex").read_text(encoding="utf-8")
    committed = pd.read_csv(FOLDER / f"{name}.csv")
    assert committed.columns.tolist() == here.frame.columns.tolist()
    for column in committed:
        values = here.frame[column]
        if pd.api.types.is_numeric_dtype(values):
            np.testing.assert_allclose(committed[column].astype(float), values.astype(float), rtol=1e-6)
        else:
            assert committed[column].tolist() == values.tolist()
