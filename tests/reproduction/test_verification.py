"""Committed numbers made again: agreement is seen, and so is a number that was changed."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from recipes import functions, tiny_data
from sinklora.cache.h2o import H2O
from sinklora.cli import application
from sinklora.reproduction.cache.study import CacheStudy
from sinklora.reproduction.cache.study import measure as measure_caches
from sinklora.reproduction.cache.text_study import TextStudy, measure_text
from sinklora.reproduction.extension.recipe import read_recipe
from sinklora.reproduction.extension.study import ExtensionStudy, measure
from sinklora.reproduction.verification import CHECKS, TRAINED, Cell, Draw, verify
from sinklora.train.sources import CorpusSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, a corpus of three splits and a recipe."""
    folder = tmp_path_factory.mktemp("verification")
    texts = functions(6, 120)
    source, base = tiny_data(folder, texts, (2, 4), positions=256)
    pieces = {"pieces": 2, "tokens": 64}
    recipe = {
        "original_context": 32,
        "training": {"base": base, "corpus": {"source": source}, "context": 64, "steps": 2}
        | {"batch_size": 1, "micro_batch_size": 1},
        "stride": 16,
        "texts": {
            "validation": {"corpus": {"source": source, "split": "validation"}, **pieces},
            "Table 1": {"corpus": {"source": source, "split": "test"}, **pieces},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def draw_of(folder: Path, parameters: dict[str, Any], tmp_path: Path) -> Draw:
    return Draw(folder, parameters, np.random.default_rng(0), 2, tmp_path / "again")


@pytest.mark.parametrize("check", ["untrained", "trained"])
def test_losses_are_made_again_and_a_changed_one_is_seen(folder: Path, check: str, tmp_path: Path) -> None:
    recipe = read_recipe(folder / "recipe.yaml")
    rows = measure(
        ExtensionStudy(recipe, ("sf",), (0, 1), ("Table 1",), (64,)), runs=folder / "runs", progress=False
    )
    parameters = {"recipe": str(folder / "recipe.yaml"), "pieces": 0, "patterns": ["sf"]}
    again = CHECKS[check][2]
    cells = list(again(draw_of(folder, parameters, tmp_path), rows))
    assert len(cells) == 2 and all(cell.agrees and not cell.reason for cell in cells)
    assert all(cell.again == pytest.approx(cell.committed, abs=1e-5) for cell in cells)
    changed = list(again(draw_of(folder, parameters, tmp_path), rows.assign(nll=rows.nll + 2 * TRAINED)))
    assert not any(cell.agrees for cell in changed) and "DIFFERS" in changed[0].told()
    elsewhere = list(again(draw_of(folder, parameters, tmp_path), rows.assign(piece="of another machine")))
    assert [cell.agrees for cell in elsewhere] == [True]
    assert "of another machine is not among this environment's texts" in elsewhere[0].told()


def test_the_small_bases_caches_are_read_again(folder: Path, tmp_path: Path) -> None:
    given = {"base": str(folder / "base"), "prompt_tokens": 24, "scored_tokens": 8, "documents": 2}
    study = CacheStudy(
        corpus=CorpusSpec(f"dir:{folder / 'corpus'}", "test", 10, total_characters=10**6),
        recall_tokens=200,
        trials=1,
        seeds=(0,),
        **given,
    )
    found = measure_caches(study, {"h2o": [H2O(0.5)]}, runs=folder / "runs", progress=False)
    mean = found[(found.measure == "perplexity") & (found.policy == "h2o")].value.mean()
    values = pd.DataFrame(
        [{"measure": "perplexity", "policy": "h2o", "budget": 0.5, "value": float(np.exp(mean))}]
    )
    parameters = {**given, "source": study.corpus.source, "split": "test", "min_characters": 10}
    draw = draw_of(folder, {**parameters, "characters": 10**6, "recall_tokens": 200}, tmp_path)
    [cell] = CHECKS["cache"][2](draw, values)
    assert cell.agrees and cell.again == pytest.approx(mean, abs=1e-5)
    [changed] = CHECKS["cache"][2](draw, values.assign(value=values.value * 1.1))
    assert not changed.agrees


def test_the_real_models_passages_are_read_again(folder: Path, tmp_path: Path) -> None:
    corpus = CorpusSpec(f"dir:{folder / 'corpus'}", "test", 10, max_characters=2_000_000)
    study = TextStudy(
        str(folder / "base"),
        prompt_tokens=24,
        scored_tokens=8,
        passages=2,
        per_document=1,
        fact_tokens=1000,
        fact_passages=1,
    )
    rows = measure_text(study, corpus, {"h2o": [H2O(0.5)]}, runs=folder / "runs", progress=False)
    given = {f"real_{name}": value for name, value in dataclasses.asdict(study).items()}
    parameters = {
        **given,
        "real_prompt": 24,
        "real_scored": 8,
        "real_source": corpus.source,
        "real_split": "test",
        "real_min_characters": 10,
    }
    check = CHECKS["real-cache"][2]
    cells = list(check(draw_of(folder, parameters, tmp_path), rows))
    assert len(cells) == 2 and all(cell.agrees and not cell.reason for cell in cells)
    moved = list(check(draw_of(folder, parameters, tmp_path), rows.assign(value=rows.value + 1)))
    assert not any(cell.agrees for cell in moved)
    lacking = draw_of(folder, {**parameters, "real_source": f"dir:{tmp_path / 'none'}"}, tmp_path)
    [cell] = check(lacking, rows)
    assert "not on this machine" in cell.reason


def test_what_is_not_committed_is_said(tmp_path: Path) -> None:
    (tmp_path / "notebooks").symlink_to(Path("notebooks").absolute())
    cells = list(verify("full", cells=1, seed=0, runs=tmp_path / "runs", repository=tmp_path))
    assert len(cells) == len(CHECKS) and {cell.reason for cell in cells} == {"not committed yet"}
    with pytest.raises(ValueError, match="only='x': the checks are untrained, trained"):
        next(verify("full", cells=1, seed=0, runs=tmp_path / "runs", only="x"))
    with pytest.raises(ValueError, match="profile='ful': expected one of smoke, quick, full"):
        next(verify("ful", cells=1, seed=0, runs=tmp_path / "runs"))


UNMADE = Cell("t", "w", reason="not committed yet")


@pytest.mark.parametrize(
    ("cells", "code", "said"),
    [
        ([UNMADE, UNMADE], 1, "nothing was compared"),
        ([UNMADE, Cell("t", "w", 1.0, 1.0)], 0, "all agree (1 compared)"),
        ([UNMADE, Cell("t", "w", 1.0, 1.0), Cell("t", "w", 1.0, 2.0)], 1, "1 of 2 differ"),
    ],
)
def test_what_was_not_compared_agrees_with_nothing(
    cells: list[Cell], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinklora.reproduction.verification.verify", lambda *_, **__: iter(cells))
    done = CliRunner().invoke(application, ["verify"])
    assert done.exit_code == code and done.stdout.splitlines()[-1] == said, done.output


def test_a_cell_agrees_within_its_tolerance() -> None:
    cell = Cell("t", "w", 1.0, 1.25, 0.25)
    assert (
        cell.agrees and not replace(cell, again=1.5).agrees and not replace(cell, again=float("nan")).agrees
    )
