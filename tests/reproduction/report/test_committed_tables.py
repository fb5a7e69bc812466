"""The committed tables: numbers in the csv files, and the same text made of the committed measurements."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from sinklora.records.tables import Table, latex, markdown
from sinklora.reproduction.ablations.study import TEST_SET, sparse_patterns, sweep_methods, untrained_at
from sinklora.reproduction.ablations.tables import condition_table, published, schedule_table, sweep_table
from sinklora.reproduction.extension.comparison import losses
from sinklora.reproduction.extension.recipe import read_recipe
from sinklora.reproduction.extension.study import attention_cost
from sinklora.reproduction.extension.tables import comparison_table, extension_table, with_paper
from sinklora.reproduction.names import label
from sinklora.reproduction.report.published import paper_values

FOLDER = Path("results/full")
WRITTEN = re.compile(r"\d ± \d|\d to -?\d|^\d+\.\d+ \(|^\d[\d.]*-\d[\d.]*$|^–$")
SWEEPS: dict[str, tuple[str, list[float]]] = {
    "sweep_sink_tokens": ("sink_tokens", [0, 1, 2, 4, 8, 16]),
    "sweep_shifted": ("shifted", [0.0, 0.25, 0.5]),
    "sweep_group_size": ("group_size", [0.0625, 0.125, 0.25, 0.5]),
}
PARTS = {
    "table7": (["s2_wrapped", "s2", "short", "sf_shifted", "sf", "full"], "s2"),
    "table8": (["s2_wrapped", "shift_up", "shift_back", "s2", "short"], "s2_wrapped"),
}
METHODS = ["full", "short", "s2", "s2_wrapped", "sf", "sf_shifted", "sf_then_full"]
MADE_OF = {
    "table1": "perplexity_measurements",
    "table2": "perplexity_measurements",
    "table3": "longest_measurements",
    "table7": "ablation_measurements",
    "table8": "ablation_measurements",
    "table9": "ablation_lengths",
    "schedules": "ablation_measurements",
    **dict.fromkeys(SWEEPS, "ablation_measurements"),
}
COMMITTED = [name for name in MADE_OF if (FOLDER / "tables" / f"{name}.md").is_file()]


def made(name: str) -> Table:
    """A table made of the measurements that are committed beside it."""
    rows = pd.read_parquet(FOLDER / "rows" / f"{MADE_OF[name]}.parquet")
    rows = rows[rows.attention == "full"]
    recipe = read_recipe("configs/recipes/embedded.yaml")
    target = recipe.training.context
    if name in ("table1", "table2", "table3"):
        target = int(rows.context.max())
        item = name.replace("table", "Table ")
        record = json.loads((FOLDER / "provenance" / f"{name}.json").read_text(encoding="utf-8"))
        start = re.search(r"No training: (.*?)\.( Texts| Published|$)", record["caption"])
        assert start is not None
        here = extension_table(rows[rows.method.isin(methods_of(rows))], item, METHODS, target, start[1])
        return here if name == "table1" else with_paper(here, paper_values(item), target)
    if name == "table9":
        lengths = sorted({int(n) for n in rows[rows.seed.notna()].context})
        methods = ["full", "s2", *sparse_patterns(), "sf"]
        by_length = {f"{length}": losses(rows, TEST_SET, length) for length in lengths}
        costs_at = {f"{n}": {m: attention_cost(recipe.spec(m, context=n)) for m in methods} for n in lengths}
        return condition_table(by_length, untrained_at(recipe, lengths), methods, costs_at)
    found = losses(rows, TEST_SET, target)
    if name in PARTS:
        methods, reference = PARTS[name]
        untrained = {"base": "base, in its own windows", "yarn ×4, untrained": "yarn ×4, untrained"}
        costs = {method: attention_cost(recipe.spec(method)) for method in methods}
        labels = untrained | {method: label(method) for method in methods}
        return comparison_table(found, labels, reference, costs, published(name.replace("table", "Table ")))
    if name == "schedules":
        methods = ["sf", "sf_then_full", "sf_growing"]
        return schedule_table(found, methods, {m: attention_cost(recipe.spec(m)) for m in methods})
    field, values = SWEEPS[name]
    by_value = sweep_methods(field, values)
    costs = {method: attention_cost(recipe.spec(method)) for method in by_value.values()}
    return sweep_table(found, field, by_value, costs)


def methods_of(rows: pd.DataFrame) -> list[str]:
    """The methods of the tables: the other one has a table of its own."""
    return [method for method in rows.method.unique() if "time" not in method]


CSVS = [path for kind in ("tables", "benchmarks") for path in sorted(Path("results").glob(f"*/{kind}/*.csv"))]


@pytest.mark.parametrize("path", CSVS, ids=lambda path: path.stem)
def test_a_csv_holds_numbers_not_their_text(path: Path) -> None:
    cells = pd.read_csv(path, dtype=str).stack().dropna()
    assert [cell for cell in cells if WRITTEN.search(cell)] == []


@pytest.mark.parametrize("name", COMMITTED)
def test_the_committed_text_is_made_of_the_committed_measurements(name: str) -> None:
    here = made(name)
    assert markdown(here) + "\n" == (FOLDER / "tables" / f"{name}.md").read_text(encoding="utf-8")
    record = json.loads((FOLDER / "provenance" / f"{name}.json").read_text(encoding="utf-8"))
    assert latex(here, record["caption"]) == (FOLDER / "tables" / f"{name}.tex").read_text(encoding="utf-8")
