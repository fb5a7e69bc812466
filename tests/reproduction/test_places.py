"""Where notebooks run and write: any working directory, a checkout that is only read, an installed wheel."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest

from sinklora.records.runs import RunDirectory
from sinklora.reproduction.notebooks import tidy
from sinklora.reproduction.places import RESULTS, Places, find_places, find_sources
from small_checkout import ROOT, executed, files_of, make_checkout, reproduced

WRITING = """
from pathlib import Path
from sinklora.records.runs import RunDirectory
from sinklora.reproduction.report.outputs import Report, from_repository_root
import pandas as pd

from_repository_root()
here = Path("data/paper_numbers.csv").is_file()
folder = RunDirectory(Path(runs), {"a": 1}).reuse_or(lambda path: [])
facts = {"paper_item": "x", "caption": "", "verdict": ""}
Report("20_new", profile, {}).table("new", pd.DataFrame({"here": [here]}), **facts)
"""

TRANSPORT = """
import json
from ipykernel.connect import get_connection_file
print(json.load(open(get_connection_file()))["transport"], get_connection_file())
"""


def printed(notebook: Path) -> str:
    """What a notebook's cells printed."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(o.get("text", "") for cell in cells for o in cell.get("outputs", ()))


def test_all_is_written_elsewhere_from_any_folder_with_any_name(tmp_path: Path) -> None:
    root = make_checkout(tmp_path / "Aus checkung ü", {"20_new": [WRITING]})
    before = files_of(root)
    places = Places(root, tmp_path / "Ergebnisse für mich", tmp_path / "Läufe – 1")
    notebook = executed(root, places)
    assert files_of(root) == before, "the checkout may be one that cannot be written"
    assert notebook == places.results / "smoke" / "notebooks" / "20_new.ipynb"
    assert (places.results / "smoke" / "tables" / "new.csv").read_text() == "here\nTrue\n"
    assert [path.name for path in places.runs.glob("run-*/finished.json")] == ["finished.json"]
    assert str(tmp_path) not in notebook.read_text(encoding="utf-8"), "no paths of the machine"
    assert RESULTS not in os.environ


def test_the_kernel_is_spoken_to_over_sockets_of_this_user_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("long" * 20)  # whose sockets' names would be too long for the system
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    said = printed(executed(make_checkout(tmp_path / "checkout", {"20_new": [TRANSPORT]})))
    transport, file = said.split()
    assert transport == "ipc" and not Path(file).parent.exists(), "removed at the end"
    assert "encryption" not in capfd.readouterr().err


@pytest.mark.slow
def test_who_waits_for_a_run_says_so_while_the_notebook_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = make_checkout(tmp_path, {"20_new": [WRITING]})
    run = RunDirectory(root / "runs", {"a": 1})
    with ThreadPoolExecutor(1) as pool:
        with run.lock():
            running = pool.submit(executed, root)
            shown, end = "", time.monotonic() + 60
            while "waiting: " not in shown and not running.done() and time.monotonic() < end:
                shown += capfd.readouterr().err
            assert f"waiting: process {os.getpid()} works in {run.path.relative_to(root)} " in shown
        assert running.result().is_file()


@pytest.mark.slow
def test_three_at_once_in_a_bare_environment(tmp_path: Path) -> None:
    root = make_checkout(tmp_path / "checkout", {"20_new": [WRITING]})
    bare = {"PATH": os.environ["PATH"], "LANG": "C", "PYTHONPATH": str(ROOT)}
    with ThreadPoolExecutor(3) as pool:
        (tmp_path / "here").mkdir()
        ended = list(pool.map(lambda _: reproduced(root, environment=bare), range(3)))
    assert [code for code, _, _ in ended] == [0, 0, 0], ended
    assert (root / "results" / "smoke" / "tables" / "new.csv").read_text() == "here\nTrue\n"
    assert len(list((root / "runs").glob("run-*"))) == 1


def test_places_are_the_checkout_that_this_is_inside_of_else_the_packages_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_checkout(tmp_path / "checkout", {"20_new": ["1"]})
    monkeypatch.chdir(root / "notebooks")
    assert find_places() == Places(root, root / "results", root / "runs")
    assert find_places().is_usual and not find_places(tmp_path / "other").is_usual
    monkeypatch.chdir(tmp_path)
    assert find_sources() == ROOT
    assert find_places(Path("r"), Path("s")) == Places(ROOT, tmp_path / "r", tmp_path / "s")


@pytest.mark.parametrize("name", ["results", "runs"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    given = {"results": tmp_path / "results", "runs": tmp_path / "runs", name: Path("/proc/none")}
    with pytest.raises(ValueError, match=f"{name}='/proc/none': cannot be made .*give --{name} another"):
        find_places(**given)


def test_only_the_line_with_the_place_of_runs_leaves_an_executed_notebook(tmp_path: Path) -> None:
    source = 'profile = "smoke"\nruns = "/somewhere/runs"\nruns_tried = 3'
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["injected-parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "a.ipynb")
    tidy(tmp_path / "a.ipynb")
    [cell] = json.loads((tmp_path / "a.ipynb").read_text())["cells"]
    assert "".join(cell["source"]) == 'profile = "smoke"\nruns_tried = 3'


@pytest.mark.parametrize("name", ["results", "runs"])
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may write anywhere: the system's answer stands in for another's folder."""
    folders = {"results": tmp_path / "results", "runs": tmp_path / "runs"}
    monkeypatch.setattr(os, "access", lambda path, mode: path != folders[name])
    with pytest.raises(ValueError, match=f"{name}='.*': cannot be written; give --{name} another folder"):
        find_places(**folders)
