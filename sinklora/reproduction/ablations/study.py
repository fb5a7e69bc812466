"""Which models the ablations need: one recipe and one test set, methods and training conditions vary."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sinklora.attention.patterns import PATTERNS, find_pattern
from sinklora.records.checks import Distinct, check_among, check_value
from sinklora.reproduction.extension.readings import joined
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.extension.study import ExtensionStudy, measure
from sinklora.reproduction.names import BASE, untrained_name
from sinklora.reproduction.patterns.study import pattern_names

TEST_SET = "Table 1"


def sparse_patterns() -> list[str]:
    """The patterns that are no windows, with which Table 9 compares."""
    return pattern_names(windows=False)


@dataclass(frozen=True)
class Methods:
    """What is compared in Tables 7 (`parts`), 8 (`shifts`) and 9 (`others`), and in `sweeps` of a field."""

    parts: tuple[str, ...]
    shifts: tuple[str, ...]
    others: tuple[str, ...]
    sweeps: Mapping[str, Mapping[float, str]]

    @property
    def all(self) -> tuple[str, ...]:
        """Each method once."""
        swept = (method for methods in self.sweeps.values() for method in methods.values())
        return tuple(dict.fromkeys([*self.parts, *self.shifts, *self.others, *swept]))

    @property
    def searched(self) -> tuple[str, ...]:
        """Those with a learning rate of their own: one with a field of its own has its kin's."""
        return tuple(method for method in self.all if "(" not in method)


def methods_of(parameters: Mapping[str, Any]) -> Methods:
    """The methods of a notebook's parameters.

    Raises ValueError as well for parameters of which no table could be made once all is trained.
    """
    schedules = parameters["schedules"]
    fields = {"sink_tokens": "sink_tokens", "shifted": "shifted", "group_size": "group_sizes"}
    for name in ("schedules", *fields.values()):
        check_value(name, tuple(parameters[name]), Distinct[Any])
    methods = Methods(
        ("s2_wrapped", "s2", "short", "sf_shifted", "sf", "full", *schedules),
        ("s2_wrapped", "shift_up", "shift_back", "s2", "short"),
        ("full", "s2", *sparse_patterns(), "sf"),
        {field: sweep_methods(field, parameters[parameter]) for field, parameter in fields.items()},
    )
    check_among("timed_steps", parameters["timed_steps"], "methods", methods.all)
    return methods


def ablation_study(
    recipe: Recipe, methods: Sequence[str], seeds: Sequence[int], **changes: Any
) -> ExtensionStudy:
    """Methods and full attention, tested on Table 1's texts at the trained context alone.

    `changes`: fields of TrainSpec in place of the recipe's. Raises ValueError for what training would refuse.
    """
    context = recipe.spec("full", **changes).context
    patterns = tuple(dict.fromkeys(["full", *methods]))
    return ExtensionStudy(
        recipe, patterns, tuple(seeds), (TEST_SET,), (context,), changes=tuple(changes.items())
    )


def studies_at(
    recipe: Recipe, methods: Sequence[str], seeds: Sequence[int], lengths: Iterable[int]
) -> list[ExtensionStudy]:
    """Table 9's: a study for each length, at which it is trained and tested. Raises ValueError for a length
    that the texts do not have.
    """
    return [ablation_study(recipe, methods, seeds, context=length) for length in lengths]


def measure_lengths(studies: Iterable[ExtensionStudy], *, runs: Path) -> pd.DataFrame:
    """The rows of `extension.measure` of `studies_at`; attrs: the data, and all runs."""
    frames = [measure(study, runs=runs) for study in studies]
    # What needs no training is the same at every length where it is read in windows of its own.
    return joined(frames).drop_duplicates(ignore_index=True)


def untrained_at(recipe: Recipe, lengths: Sequence[int]) -> dict[str, dict[str, str]]:
    """What doing nothing is called at each length: the base as it is, and its positions extended."""
    original, rope = recipe.original_context, recipe.training.rope
    names = {"nothing, base in its own windows": dict.fromkeys(map(str, lengths), BASE)}
    extended = {str(n): untrained_name(rope, n / original) for n in lengths}
    return {**names, f"nothing, {rope} positions": extended}


def sweep_methods(field: str, values: Sequence[float]) -> dict[float, str]:
    """Value of a field -> name of SF-Attn with it: "sf", another pattern's name, or "sf(field=value)".

    Raises ValueError or TypeError for a field or value that no pattern has.
    """
    names = {}
    for value in values:
        wanted = find_pattern(f"sf({field}={value})")
        known = [name for name, pattern in PATTERNS.items() if pattern == wanted]
        names[value] = known[0] if known else f"sf({field}={value})"
    return names
