"""A notebook whose recipe reads texts that are not on this machine does not stop the others."""

import json
from pathlib import Path

import pytest
import yaml

from sinklora.reproduction.notebooks import plan, with_texts
from sinklora.reproduction.places import Places
from sinklora.reproduction.report.experiments import load_experiments
from small_checkout import PARAMETERS, ROOT, make_checkout, reproduced

READS = "from sinklora.reproduction.extension.recipe import check_texts\nprint('read')  # check_texts(plan)"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Of two notebooks the first reads books of a folder beside the checkout, which is not there."""
    root = make_checkout(tmp_path / "checkout", {"20_books": [READS], "21_none": ["print('done')"]})
    recipe = yaml.safe_load((ROOT / "configs" / "recipes" / "smoke.yaml").read_text())
    recipe["texts"]["Table 1"]["corpus"]["source"] = "dir:../books"
    (root / "books.yaml").write_text(yaml.safe_dump(recipe))
    notebook = root / "notebooks" / "20_books.ipynb"
    cells = json.loads(notebook.read_text())
    cells["cells"][0]["source"] = PARAMETERS + 'recipe: str = "books.yaml"\n'
    notebook.write_text(json.dumps(cells))
    return root


def test_a_notebook_without_its_texts_is_left_out_and_said(checkout: Path, tmp_path: Path) -> None:
    experiments = load_experiments(checkout / "notebooks" / "experiments.yaml")
    places = Places(checkout, tmp_path / "results", tmp_path / "runs")
    chosen = plan(experiments, "smoke", notebooks=places.notebooks)
    said: list[str] = []
    [(kept, _)] = with_texts(chosen, "", places, said.append)
    assert kept.notebook == "21_none"
    assert [line.split(" (")[0] for line in said] == [
        "20_books: left out, its texts are not on this machine: dir:../books"
    ]
    assert with_texts(chosen, "20,21", places, said.append) == chosen, "who names it gets its own words"
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("A book.")
    assert with_texts(chosen, "", places, said.append) == chosen and len(said) == 1


def test_test_texts_count_for_notebooks_that_read_them(checkout: Path, tmp_path: Path) -> None:
    experiments = load_experiments(checkout / "notebooks" / "experiments.yaml")
    places = Places(checkout, tmp_path / "results", tmp_path / "runs")
    notebook = checkout / "notebooks" / "20_books.ipynb"
    notebook.write_text(notebook.read_text().replace("check_texts", "something_else"))
    chosen = plan(experiments, "smoke", notebooks=places.notebooks)
    assert with_texts(chosen, "", places, print) == chosen
    recipe = yaml.safe_load((checkout / "books.yaml").read_text())
    recipe["training"]["corpus"]["source"] = "dir:../books"
    (checkout / "books.yaml").write_text(yaml.safe_dump(recipe))
    assert [kept.notebook for kept, _ in with_texts(chosen, "", places, lambda said: None)] == ["21_none"]


@pytest.mark.parametrize("notebook", ["02_perplexity", "03_longest_context", "08_ablations", "09_real_model"])
def test_notebooks_that_read_test_texts_check_them_before_they_train(notebook: str) -> None:
    cells = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    work = [source.index(word) for word in ("search(plan", "whole.rates(") if word in source]
    assert source.index("check_texts(plan)") < min(work)


def test_the_others_are_reproduced(checkout: Path) -> None:
    code, output, errors = reproduced(checkout / "notebooks")  # paths are the checkout's from anywhere
    assert code == 0, errors
    assert "20_books: left out" in output and "21_none: x" in output and "20_books: x" not in output
