"""Recipes: one file for all experiments, each pattern with its own learning rate."""

from pathlib import Path

import pytest
import yaml

from sinklora.reproduction.extension.recipe import check_texts, read_recipe
from sinklora.train.command import read_spec

TEXTS = {"validation": {"corpus": {"source": "installed:"}, "pieces": 2, "tokens": 64}}
GIVEN = {
    "original_context": 512,
    "training": {"context": 1024, "steps": 50, "learning_rate": 0.002},
    "learning_rates": {"sf": 0.0003, "sf(sink_tokens=8)": 0.001},
    "stride": 16,
    "texts": TEXTS,
}


def written(folder: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**GIVEN, **changes}))
    return path


@pytest.mark.parametrize("path", sorted(Path("configs/recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_can_be_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.original_context < recipe.training.context <= recipe.texts["validation"].tokens
    assert {"validation", "Table 1"} <= set(recipe.texts)


def test_no_text_is_for_choosing_and_for_testing() -> None:
    texts = read_recipe("configs/recipes/embedded.yaml").texts
    packages = {name: set(given.corpus.source.partition(":")[2].split(",")) for name, given in texts.items()}
    for name in ("Table 1", "Table 2", "Table 3"):
        assert packages["validation"].isdisjoint(packages[name])
        assert texts[name].pieces >= 64


def test_a_pattern_has_its_own_rate_or_that_of_its_kin(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path))
    assert recipe.rate("sf") == 0.0003
    assert recipe.rate("sf(sink_tokens=8)") == 0.001
    assert recipe.rate("sf(sink_tokens=2)") == 0.0003
    assert recipe.rate("s2") == 0.002


def test_a_configuration_trains_as_the_recipe_it_names() -> None:
    path = Path("configs/train/base-2048-sf.yaml")
    assert "configs/recipes/embedded.yaml" in path.read_text(encoding="utf-8")
    assert read_spec(path) == read_recipe("configs/recipes/embedded.yaml").spec("sf", 0)


def test_a_spec_is_the_recipe_with_changes(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, warmup_share=0.2))
    spec = recipe.spec("sf", 3)
    assert (spec.pattern, spec.seed, spec.learning_rate, spec.warmup_steps) == ("sf", 3, 0.0003, 10)
    longer = recipe.spec("sf", steps=100, learning_rate=0.5)
    assert (longer.steps, longer.learning_rate, longer.warmup_steps) == (100, 0.5, 20)


def test_windows_overlap_by_half_or_more(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, stride=16))
    assert [recipe.stride_of(context) for context in (1, 8, 32, 64)] == [1, 4, 16, 16]


def test_a_reduced_recipe_has_fewer_pieces_and_the_same_text(tmp_path: Path) -> None:
    texts = {**TEXTS, "long": {**TEXTS["validation"], "pieces": 9}}
    recipe = read_recipe(written(tmp_path, texts=texts))
    assert recipe.reduced(0) == recipe
    reduced = recipe.reduced(4)
    assert {name: text.pieces for name, text in reduced.texts.items()} == {"validation": 2, "long": 4}
    assert reduced.texts["long"].corpus == recipe.texts["long"].corpus
    assert reduced.training == recipe.training


def test_what_was_seen_is_training_text_and_what_the_base_knows(tmp_path: Path) -> None:
    assert len(read_recipe(written(tmp_path)).seen) == 1
    assert len(read_recipe(written(tmp_path, known_text={"source": "prose:"})).seen) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"texts": {}}, "expected 'validation' among them"),
        ({"learning_rates": {"sff": 0.1}}, "sff"),
        ({"learning_rates": {"sf": 0}}, "more than 0"),
        ({"stride": 0}, "stride=0"),
        ({"rate": 1}, "has no key 'rate'"),
        ({"texts": {"validation": {"pieces": 2}}}, "lacks the key"),
    ],
)
def test_bad_recipes_are_named(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"recipe.yaml: .*{words}"):
        read_recipe(path)


def test_a_missing_recipe_is_told_with_those_there_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"embedded\.yaml"):
        read_recipe("configs/recipes/none.yaml")


def test_texts_that_are_not_here_are_named(tmp_path: Path) -> None:
    check_texts(read_recipe(written(tmp_path)))
    elsewhere = {"Table 1": {**TEXTS["validation"], "corpus": {"source": f"dir:{tmp_path / 'books'}"}}}
    with pytest.raises(FileNotFoundError, match="books is not on this machine"):
        check_texts(read_recipe(written(tmp_path, texts=TEXTS | elsewhere)))
