"""Which models the ablations need: one recipe and one test set, methods and training conditions vary."""

from collections.abc import Sequence
from typing import Any

from sinklora.attention.patterns import PATTERNS, find_pattern
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.extension.study import ExtensionStudy

TEST_SET = "Table 1"


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
