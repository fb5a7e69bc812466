"""A recipe: how a base is extended and on what it is tested, one file for all experiments that use it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sinklora.records.checks import (
    Count,
    NotNegative,
    Positive,
    Share,
    check_fields,
    one_of,
    read_fields,
)
from sinklora.records.yaml_files import read_mapping
from sinklora.reproduction.extension.texts import TextSet
from sinklora.reproduction.model_under_test import DTYPES
from sinklora.train.pattern_schedules import find_schedule
from sinklora.train.sources import CorpusSpec, present_source
from sinklora.train.spec import TrainSpec

VALIDATION = "validation"  # the texts on which learning rates, steps and positions are chosen


@dataclass(frozen=True)
class Recipe:
    """What all patterns share, each pattern's learning rate, and the test texts.

    `training`: all but pattern and seed; its warm-up is `warmup_share` of the steps. `learning_rates`: by
    pattern, chosen on the validation texts (notebook 02 shows from which); a pattern with a field of its own,
    "sf(sink_tokens=8)", has that of the pattern it is made from, any other `training`'s.
    `texts`: by name, VALIDATION among them. `stride` of sliding windows (tokens): half a window, and no more
    than this. `known_text`: what the base was trained on, as far as it is known; documents that repeat it or
    the training text are not tested on.
    `test_batch` windows are read at once, weights in `test_dtype`.
    `grid`: learning rates to choose from, widened `widenings` times at most until the best lies inside.
    Raises TypeError or ValueError naming the field.
    """

    training: TrainSpec
    original_context: Count
    texts: dict[str, TextSet]
    stride: Count
    learning_rates: dict[str, Positive] = field(default_factory=dict)
    grid: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.0001, 0.0003, 0.001)
    widenings: NotNegative = 3
    warmup_share: Share = 0.1
    known_text: CorpusSpec | None = None
    test_batch: Count = 4
    test_dtype: Annotated[str, one_of(DTYPES)] = "float32"

    def __post_init__(self) -> None:
        check_fields(self)
        if VALIDATION not in self.texts:
            raise ValueError(f"texts={sorted(self.texts)}: expected {VALIDATION!r} among them")
        for pattern in self.learning_rates:
            find_schedule(pattern)

    def spec(self, pattern: str, seed: int = 0, **changes: Any) -> TrainSpec:
        """One training run; `changes`: fields of TrainSpec that differ from the recipe's."""
        chosen = {"pattern": pattern, "seed": seed, "learning_rate": self.rate(pattern), **changes}
        spec = dataclasses.replace(self.training, **chosen)
        return dataclasses.replace(spec, warmup_steps=round(self.warmup_share * spec.steps))

    def rate(self, pattern: str) -> float:
        """The learning rate of a pattern."""
        kin = pattern.partition("(")[0]
        rates = self.learning_rates
        return rates.get(pattern, rates.get(kin, self.training.learning_rate))

    def reduced(self, pieces: int) -> "Recipe":
        """The same with at most so many pieces of each text; 0 leaves them as they are."""
        if not pieces:
            return self
        texts = {
            name: dataclasses.replace(text, pieces=min(pieces, text.pieces))
            for name, text in self.texts.items()
        }
        return dataclasses.replace(self, texts=texts)

    def stride_of(self, context: int) -> int:
        """The stride of sliding windows of `context` tokens, in tokens."""
        return max(1, min(self.stride, context // 2))

    @property
    def seen(self) -> list[CorpusSpec]:
        """What a test document must not repeat."""
        return [self.training.corpus] if self.known_text is None else [self.training.corpus, self.known_text]


def read_recipe(path: str | Path, **changes: Any) -> Recipe:
    """A recipe from a YAML file; `changes`: fields that differ.

    Raises FileNotFoundError, and what Recipe raises, with the file's name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"recipe={str(path)!r}: no such file; configs/recipes has {_known(path)}")
    values = read_mapping(path, "training: and texts:")
    try:
        texts = {name: read_fields(TextSet, entry) for name, entry in (values.get("texts") or {}).items()}
        return read_fields(Recipe, {**values, "texts": texts, **changes})
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: {error}") from error


def _known(path: Path) -> str:
    return ", ".join(sorted(known.name for known in Path("configs/recipes").glob("*.yaml"))) or "none"


def missing_texts(recipe: Recipe, *, tested: bool = True) -> list[str]:
    """The recipe's folders and files of text that are not on this machine; without `tested` only of those
    that are trained on.
    """
    corpora = [recipe.training.corpus]
    if tested:
        corpora = [*recipe.seen, *(texts.corpus for texts in recipe.texts.values())]
    sources = dict.fromkeys(corpus.source for corpus in corpora)
    return [source for source in sources if present_source(source, "") != source]


def check_texts(recipe: Recipe) -> None:
    """Raise FileNotFoundError naming the recipe's folders and files of text that are not on this machine."""
    if missing := missing_texts(recipe):
        raise FileNotFoundError(f"recipe: {', '.join(missing)} is not on this machine; give it other texts")


def base_of(parameters: Mapping[str, Any]) -> str | None:
    """The model that a notebook of these parameters starts from, by its own name or its recipe's."""
    recipe = parameters.get("recipe")
    return parameters.get("base") if recipe is None else read_recipe(recipe).training.base
