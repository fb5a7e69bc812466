"""The extension study of a pretrained model: for each kind of positions learning rates, seeds, and a look
inside. `tasks` is all of it in pieces that several processes share; a notebook reads what they kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd

from sinklora.hf.rope_scaling import METHODS
from sinklora.records.checks import (
    Count,
    Distinct,
    NotNegative,
    check_among,
    check_counts,
    check_fields,
    one_of,
    read_fields,
)
from sinklora.reproduction.extension.readings import joined, read
from sinklora.reproduction.extension.recipe import VALIDATION, Recipe, read_recipe
from sinklora.reproduction.extension.selection import chosen_rates, search_rates, validation_losses
from sinklora.reproduction.extension.study import (
    ExtensionStudy,
    baselines,
    check_compared,
    measure,
    trained,
)
from sinklora.reproduction.patterns.attention_study import AFTER
from sinklora.reproduction.real_model import mechanism
from sinklora.reproduction.retrieval.keys_in_prose_study import KeysInProseStudy, measure_keys_in_prose
from sinklora.reproduction.side_by_side import Task

TEST = "Table 1"


@dataclass(frozen=True)
class RealStudy:
    """What is compared: `patterns` with each of `seeds`, for each kind of `positions`, each at its best rate.

    The models of the first seed are looked into: with their own attention in tests (`own_attention`), on
    the recipe's texts `few` by position in buckets of `bucket` tokens and by the attention that the first
    tokens draw (over `sink_tokens`), and by `key_trials` pass keys of each of `key_lengths` (tokens; none:
    they are not asked). Raises TypeError or ValueError naming the field.
    """

    recipe: Recipe
    patterns: Distinct[str]
    positions: Distinct[Annotated[str, one_of(METHODS)]]
    seeds: Distinct[int]
    contexts: Distinct[Count]
    own_attention: tuple[str, ...]
    few: str
    bucket: Count
    sink_tokens: Count
    key_lengths: tuple[Count, ...] = ()
    key_trials: NotNegative = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_counts(AFTER + 1, sink_tokens=self.sink_tokens)
        check_among("own_attention", self.own_attention, "patterns", self.patterns)
        if self.few not in self.recipe.texts:
            raise ValueError(f"few={self.few!r}: the recipe's texts are {sorted(self.recipe.texts)}")

    def with_positions(self, positions: str) -> Recipe:
        """The recipe with one kind of positions."""
        return replace(self.recipe, training=replace(self.recipe.training, rope=positions))

    def rates(self, positions: str, *, runs: Path) -> pd.DataFrame:
        """The search for the learning rates: rows of the validation texts."""
        return search_rates(self.with_positions(positions), self.patterns, runs=runs)

    def at_best_rates(self, positions: str, *, runs: Path) -> ExtensionStudy:
        """What is read with one kind of positions, each pattern at its best rate."""
        chosen = chosen_rates(self.rates(positions, runs=runs))
        rates = dict(zip(chosen.method, chosen["learning rate"], strict=True))
        recipe = replace(self.with_positions(positions), learning_rates=rates)
        return ExtensionStudy(recipe, self.patterns, self.seeds, (TEST,), self.contexts)

    def of_first_seed(self, study: ExtensionStudy) -> ExtensionStudy:
        """The models that are looked into."""
        return replace(study, seeds=self.seeds[:1], own_attention=self.own_attention)

    def keys(self, study: ExtensionStudy, *, runs: Path) -> pd.DataFrame:
        """What needs no training and the models of the first seed, asked for the keys: a row a trial.

        Columns: `method`, and those of `measure_keys_in_prose`, as are the `attrs`.
        """
        corpus = self.recipe.texts[TEST].corpus
        asked = KeysInProseStudy(study.training.base, corpus, self.key_lengths, self.key_trials)
        first = replace(self.of_first_seed(study), own_attention=())
        frames = []
        for reading in [*baselines(first), *trained(first, runs=runs, progress=False)]:
            rows = measure_keys_in_prose(asked, reading.model, {"full": None}, runs=runs, progress=False)
            frames.append(rows.assign(method=reading.model.name))
        return joined(frames)

    def only(self, pattern: str) -> "RealStudy":
        """The part that concerns one pattern."""
        own = tuple(name for name in self.own_attention if name == pattern)
        return replace(self, patterns=(pattern,), own_attention=own)


def study_of(parameters: Mapping[str, Any]) -> RealStudy:
    """The study of a notebook's parameters: those with the names of fields, the recipe by its file.

    Raises ValueError as well for parameters of which no table could be made once all is trained.
    """
    values = {field.name: parameters[field.name] for field in fields(RealStudy) if field.name != "recipe"}
    study = read_fields(RealStudy, {"recipe": read_recipe(parameters["recipe"]), **values})
    check_compared(study.recipe, study.patterns, study.own_attention, study.contexts)
    return study


def tasks(study: RealStudy, *, runs: Path) -> Iterator[tuple[str, Task]]:
    """All that the study measures, named, in the order in which it should be begun: what tells most first.

    Each keeps its outcome under `runs`. One that needs another's outcome waits for it.
    """
    for texts in (VALIDATION, TEST):
        yield f"untrained, {texts}", partial(read_untrained, study, texts, runs)
    parts = [(positions, pattern) for positions in study.positions for pattern in study.patterns]
    for rate in study.recipe.grid:
        for positions, pattern in parts:
            work = partial(try_rate, study.only(pattern), positions, rate, runs)
            yield f"{positions}, {pattern}, rate {rate:g}", work
    for seed in study.seeds:
        for positions, pattern in parts:
            work = partial(read_trained, replace(study.only(pattern), seeds=(seed,)), positions, runs)
            yield f"{positions}, {pattern}, seed {seed}", work
    for positions, pattern in parts:
        yield f"{positions}, {pattern}, inside", partial(look_inside, study.only(pattern), positions, runs)


def read_untrained(study: RealStudy, texts: str, runs: Path) -> None:
    """What doing nothing scores on texts of the recipe."""
    recipe = study.recipe
    contexts = {recipe.original_context, recipe.training.context}
    contexts |= set(study.contexts) if texts == TEST else set()
    untrained = ExtensionStudy(recipe, study.patterns[:1], (0,), (texts,), tuple(contexts))
    read(recipe, untrained.test_sets, baselines(untrained), runs=runs, progress=False)


def try_rate(study: RealStudy, positions: str, rate: float, runs: Path) -> None:
    """The patterns at one learning rate, on the validation texts."""
    validation_losses(study.with_positions(positions), study.patterns, runs=runs, rates=[rate])


def read_trained(study: RealStudy, positions: str, runs: Path) -> None:
    """The models of the study on the test texts."""
    chosen = study.at_best_rates(positions, runs=runs)
    used: list[Path] = []
    readings = trained(chosen, runs=runs, progress=False, used=used)
    read(chosen.recipe, chosen.test_sets, readings, runs=runs, progress=False, used=used)


def look_inside(study: RealStudy, positions: str, runs: Path) -> None:
    """The looks into the models of the first seed."""
    chosen = study.of_first_seed(study.at_best_rates(positions, runs=runs))
    measure(chosen, runs=runs, progress=False)
    mechanism.by_position(chosen, study.few, study.bucket, runs=runs, progress=False)
    mechanism.sink_mass(chosen, study.few, study.sink_tokens, runs=runs, progress=False)
    if study.key_lengths:
        study.keys(chosen, runs=runs)


def keys_table(rows: pd.DataFrame) -> pd.DataFrame:
    """A line a method and length: mean nats for a key's digits, how many keys were right, how many asked."""
    grouped = rows.groupby(["method", "tokens"], sort=False)
    lines = grouped.agg(nats=("nats", "mean"), right=("correct", "sum"), asked=("correct", "size"))
    return lines.reset_index()
