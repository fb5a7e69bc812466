"""Tables, figures and records as files; the index; tables quoted in a text."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from sinklora.records.tables import markdown
from sinklora.reproduction.report.outputs import LONGEST_TABLE, Report
from sinklora.reproduction.report.published import paper_values
from sinklora.reproduction.report.quoted_tables import quote_tables
from sinklora.reproduction.report.summaries import mean_over, over

FACTS = {"paper_item": "Table 9", "caption": "What it shows.", "verdict": "It held."}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report("09_test", "full", {"steps": 3}, tmp_path)


def make_table(report: Report) -> None:
    report.table("t", pd.DataFrame({"name": ["a_b", "c"], "value": [1.23456, None]}), seeds=[0, 1], **FACTS)  # type: ignore[arg-type]


def test_a_table_in_three_formats_and_its_record(report: Report) -> None:
    make_table(report)
    folder = report.root / "full"
    assert (folder / "tables" / "t.csv").read_text() == "name,value\na_b,1.23456\nc,\n"
    assert "| c" in (folder / "tables" / "t.md").read_text()
    assert "a\\_b & 1.235" in (folder / "tables" / "t.tex").read_text()
    record = json.loads((folder / "provenance" / "t.json").read_text())
    assert record["seeds"] == [0, 1] and record["parameters"] == {"steps": 3}
    assert {"commit", "dirty", "changed_files", "versions", "hardware", "time"} <= set(record)


def test_the_runs_that_a_table_was_made_of_are_listed(report: Report) -> None:
    runs = [
        {"run": "sf-1", "commit": "b" * 40, "dirty": True, "changed_files": ["a.py", "b.py"], "seconds": 1.5},
        {"run": "perplexity-2", "commit": None, "dirty": None, "changed_files": [], "seconds": None},
    ]
    rows = pd.DataFrame({"nats": [1.0]})
    rows.attrs["runs"] = [*runs, runs[0]]  # of two measurements that share one
    report.table("measured", rows, **FACTS)  # type: ignore[arg-type]
    record = json.loads((report.root / "full" / "provenance" / "measured.json").read_text())
    assert record["runs"] == {"count": 2, "commits": ["b" * 40, None]}
    listed = report.root / "full" / "made_of" / "measured.csv"
    assert listed.read_text().splitlines() == [
        "run,commit,dirty,changed_files,seconds",
        f"sf-1,{'b' * 40},True,a.py b.py,1.5",
        "perplexity-2,,,,",
    ]
    report.table("measured", pd.DataFrame({"nats": [1.0]}), **FACTS)  # type: ignore[arg-type]
    assert not listed.exists(), "what an earlier run wrote does not stay"


def test_a_figure_in_two_formats_is_the_same_every_time(report: Report) -> None:
    files = []
    for _ in range(2):
        figure, axis = plt.subplots()
        axis.plot([1, 2])
        report.figure("f", figure, **FACTS)  # type: ignore[arg-type]
        files.append(
            [(report.root / "full" / "figures" / f"f.{kind}").read_bytes() for kind in ("png", "pdf")]
        )
    assert files[0] == files[1]
    assert files[0][0].startswith(b"\x89PNG") and files[0][1].startswith(b"%PDF")


def test_markdown_rounds_and_marks_what_is_missing() -> None:
    lines = markdown(pd.DataFrame({"x": [1.23456, float("nan")], "n": [7, 8]})).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:3]] == ["1.235", "7"]
    assert [cell.strip() for cell in lines[3].split("|")[1:3]] == ["–", "8"]


@pytest.mark.parametrize("rows", [LONGEST_TABLE, LONGEST_TABLE + 1])
def test_a_long_table_is_written_for_programs_alone(report: Report, rows: int) -> None:
    for count in (1, rows):  # what an earlier run wrote does not stay
        report.table("items", pd.DataFrame({"nats": range(count)}), **FACTS)  # type: ignore[arg-type]
    written = {path.suffix for path in (report.root / "full" / "tables").iterdir()}
    assert written == ({".csv", ".md", ".tex"} if rows == LONGEST_TABLE else {".csv"})


def test_raw_measurements_are_written_for_programs_alone(report: Report) -> None:
    make_table(report)  # what an earlier run wrote does not stay
    shown = report.table("t", pd.DataFrame({"nats": range(3)}), raw=True, **FACTS)  # type: ignore[arg-type]
    assert {path.suffix for path in (report.root / "full" / "tables").iterdir()} == {".csv"}
    assert "The first 3 of 3 rows; t.csv has all" in shown._repr_mimebundle_()["text/plain"]


def test_quoted_tables_are_refilled_and_stay(report: Report) -> None:
    make_table(report)
    text = "before\n<!-- table: full/t -->\nstale\n<!-- end of table -->\nafter\n"
    filled = quote_tables(text, report.root)
    assert "stale" not in filled and "1.235" in filled and filled.endswith("after\n")
    assert quote_tables(filled, report.root) == filled
    assert "Not yet measured." in quote_tables(text.replace("full/t", "full/none"), report.root)


def test_published_values() -> None:
    values = paper_values("Table 2")
    assert values[values.row == "SF-Attn 7B Llama2"].value.tolist() == ["8.60", "8.17", "7.85"]
    with pytest.raises(ValueError, match="Table 99"):
        paper_values("Table 99")


def test_a_notebook_shows_each_output_once_with_its_caption(tmp_path: Path) -> None:
    first = (
        "from pathlib import Path\n"
        "import matplotlib.pyplot as plt\n"
        "import pandas as pd\n"
        "from sinklora.reproduction.report.outputs import Report\n"
        "from sinklora.reproduction.report.style import figure_style\n"
        f"report = Report('03_longest_context', 'smoke', {{}}, Path({str(tmp_path)!r}))\n"
        "facts = dict(paper_item='Fig. 1', caption='x < y.', verdict='Held.', seeds=[0, 1])\n"
        "def draw():\n"
        "    with figure_style():\n"
        "        return plt.subplots()[0]\n"
    )
    shows = [
        f"{first}report.figure('one', draw(), **facts)",
        "display(report.figure('two', draw(), **facts))\nfigure = draw()",
        "report.table('three', pd.DataFrame({'nats': range(151)}), **facts)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in shows])
    NotebookClient(notebook, kernel_name="python3", timeout=60).execute()
    one, two, three = ([o.data for o in cell.outputs if "data" in o] for cell in notebook.cells)
    for picture, legend in (one, two[:2]):
        assert set(picture) == {"image/png", "text/plain"}
        assert set(legend) == {"text/html", "text/markdown", "text/plain"}
    assert [set(data) for data in two[2:]] == [{"image/png", "text/plain"}], "what was not written stays open"
    assert "<b>Fig. 1, one.</b> x &lt; y." in one[1]["text/html"]
    assert "**Seeds.** 0, 1\n\n**Verdict.** Held." in one[1]["text/markdown"]
    [table] = three
    assert "The first 5 of 151 rows; three.csv has all." in table["text/plain"]
    assert table["text/html"].count("<tr") == 6 and "<b>Verdict.</b> Held." in table["text/html"]
    assert table["text/markdown"].count("\n|") == 6


def test_one_seed_is_no_mean_over_seeds() -> None:
    assert (mean_over([3]), over([3], "passages")) == ("one seed", "passages")
    assert (mean_over([0, 1]), over([0, 1], "passages")) == ("mean over seeds", "seeds and passages")
    assert mean_over([3], spread=True) == "one seed"
    assert mean_over([0, 1], spread=True) == "mean ± standard deviation over 2 seeds"
