"""Recipes: one file for all experiments, each pattern with its own learning rate."""

from pathlib import Path

import pytest
import yaml

from sinklora.reproduction.extension.recipe import VALIDATION, check_texts, read_recipe
from sinklora.train.command import read_spec
from sinklora.train.sources import ALL, HELD_OUT, SPLITS, TRAIN_PACKAGES, CorpusSpec

TEXTS = {"validation": {"corpus": {"source": "installed:"}, "pieces": 2, "tokens": 64}}
GIVEN = {
    "original_context": 512,
    "training": {"context": 1024, "steps": 50, "learning_rate": 0.002},
    "learning_rates": {"sf": 0.0003, "sf(sink_tokens=8)": 0.001},
    "stride": 16,
    "texts": TEXTS,
}


FULL_RECIPES = [path for path in sorted(Path("configs/recipes").glob("*.yaml")) if path.stem != "smoke"]


def written(folder: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({**GIVEN, **changes}))
    return path


@pytest.mark.parametrize("path", sorted(Path("configs/recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_can_be_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.original_context < recipe.training.context <= recipe.texts["validation"].tokens
    assert {"validation", "Table 1"} <= set(recipe.texts)


def parts_of(corpus: CorpusSpec) -> set[str]:
    """The packages of installed sources, or the one source there is."""
    kind, _, names = corpus.source.partition(":")
    return set(names.split(",") if names else TRAIN_PACKAGES) if kind == "installed" else {corpus.source}


def share_a_document(first: CorpusSpec, second: CorpusSpec) -> bool:
    """Whether two corpora may have one, by their names: of one source, and of splits that are not apart."""
    several = {ALL: set(SPLITS), HELD_OUT: {"validation", "test"}}
    splits = [several.get(corpus.split, {corpus.split}) for corpus in (first, second)]
    return bool(parts_of(first) & parts_of(second) and splits[0] & splits[1])


@pytest.mark.parametrize("path", FULL_RECIPES, ids=lambda path: path.stem)
def test_no_text_is_for_choosing_and_for_testing(path: Path) -> None:
    """Nor for training. The smoke recipe alone, which measures nothing, tests on what it chooses by."""
    recipe = read_recipe(path)
    chosen_by = [text.corpus for name, text in recipe.texts.items() if name.startswith(VALIDATION)]
    tested = [text.corpus for name, text in recipe.texts.items() if name.startswith("Table")]
    assert len(chosen_by) + len(tested) == len(recipe.texts)
    for corpus in tested:
        assert not any(share_a_document(corpus, other) for other in (*chosen_by, recipe.training.corpus))
        if corpus.source.startswith("installed:"):
            assert all(parts_of(corpus).isdisjoint(parts_of(other)) for other in chosen_by)


def test_test_texts_of_the_embedded_base_have_many_pieces() -> None:
    texts = read_recipe("configs/recipes/embedded.yaml").texts
    assert all(texts[name].pieces >= 64 for name in ("Table 1", "Table 2", "Table 3"))


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
