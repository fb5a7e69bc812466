"""Adding a table: a folder with its study, a notebook, one entry in the index; all else follows."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml

from sinklora.reproduction.gpu import GpuPlan
from sinklora.reproduction.notebooks import execute, plan
from sinklora.reproduction.places import Places
from sinklora.reproduction.report.experiments import load_experiments
from sinklora.reproduction.report.index import write_index

STUDY = """
import matplotlib.pyplot as plt
import pandas as pd
from sinklora.records.tables import Column, Spread, Table
from sinklora.reproduction.report.summaries import mean_and_sd

def heights(steps):
    line = {"name": "new", **mean_and_sd("height", pd.Series([steps, steps + 1.0]))}
    return Table(pd.DataFrame([line]), [Column("name"), Spread("height")])

def height_figure(table):
    figure, axis = plt.subplots()
    axis.bar(table.frame.name, table.frame.height)
    return figure
"""

PARAMETERS = 'profile: str = "full"\nsteps: int = 1\n'

NOTEBOOK = """
from new_table.study import height_figure, heights
from sinklora.reproduction.report.outputs import Report, from_repository_root

from_repository_root()
report = Report("20_new", profile, {"steps": steps})
facts = {"paper_item": "Table 7", "verdict": "It held.", "seeds": [0, 1]}
table = report.table("new_heights", heights(steps), caption="Heights.", **facts)
figure = report.figure("new_figure", height_figure(table), caption="The same.", **facts)
"""

ENTRY = """
- notebook: 20_new
  reproduces: "A new table"
  outputs: [new_heights, new_figure]
  parameters: {full: {steps: 3}, gpu: {steps: 9}}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with nothing but the new table in it."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("notebooks", "new_table", "data"):
        (root / folder).mkdir()
    (root / "pyproject.toml").touch()
    shutil.copy("data/paper_numbers.csv", root / "data")
    (root / "README.md").write_text("<!-- table: full/new_heights -->\n<!-- end of table -->\n")
    (root / "new_table" / "study.py").write_text(STUDY)
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(NOTEBOOK)])
    notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
    nbformat.write(notebook, root / "notebooks" / "20_new.ipynb")
    (root / "notebooks" / "experiments.yaml").write_text(ENTRY)
    return root


def test_it_is_run_shown_in_the_index_and_quoted(repository: Path) -> None:
    experiments = load_experiments(repository / "notebooks" / "experiments.yaml")
    [(experiment, parameters)] = plan(experiments, "full", notebooks=repository / "notebooks")
    execute(experiment, "full", parameters, Places(repository, repository / "results", repository / "runs"))
    write_index(repository)
    tables = repository / "results" / "full" / "tables"
    assert (tables / "new_heights.csv").read_text() == "name,height,height (sd)\nnew,3.5,0.7071067811865476\n"
    assert "[full](full/pages/table7.md)" in (repository / "results" / "README.md").read_text(
        encoding="utf-8"
    )
    page = (repository / "results" / "full" / "pages" / "table7.md").read_text(encoding="utf-8")
    assert "### new_heights" in page and "| new    | 3.50 ± 0.71 |" in page
    assert "![new_figure](../figures/new_figure.png)" in page
    assert re.search(r"\| SF-Attn +\| 8\.64 +\|", page) and "**Verdict:** It held." in page
    report = (repository / "results" / "full" / "report.html").read_text(encoding="utf-8")
    assert report.count("3.50 ± 0.71") == 1 and report.count("data:image/png") == 1
    assert "| new    | 3.50 ± 0.71 |" in (repository / "README.md").read_text(encoding="utf-8")


def test_it_is_a_step_of_the_gpu_plan(repository: Path) -> None:
    config = yaml.safe_load(Path("configs/gpu.yaml").read_text(encoding="utf-8"))
    del config["last"]  # a notebook that this repository lacks
    (repository / "gpu.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    steps = GpuPlan.read(repository / "gpu.yaml", repository / "notebooks" / "experiments.yaml").steps
    assert [step.name for step in steps][-2:] == ["20_new", "base"], "it starts from no base"
