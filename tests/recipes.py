"""Recipes of tests: a training and texts that are only named."""

from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.extension.texts import TextSet
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec


def recipe_of(training: TrainSpec, corpus: CorpusSpec | None = None, tokens: int = 64) -> Recipe:
    """A recipe whose texts, validation and Table 1, are single pieces of one corpus."""
    texts = TextSet(corpus or CorpusSpec(split="test"), 1, tokens)
    return Recipe(training, 32, {"validation": texts, "Table 1": texts}, 16)
