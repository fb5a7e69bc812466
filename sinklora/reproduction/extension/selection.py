"""What is chosen on validation texts before anything is tested: learning rates, steps, positions."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sinklora.reproduction.extension.recipe import VALIDATION, Recipe
from sinklora.reproduction.extension.study import ExtensionStudy, measure
from sinklora.reproduction.names import BASE

RATES = ["method", "learning rate"]

WIDENINGS = 3  # of a grid whose best rate is its first or last

CONVERGED = 0.01  # of perplexity: what the last doubling of the steps may still change


def validation_losses(
    recipe: Recipe,
    patterns: Sequence[str],
    *,
    runs: Path,
    rates: Iterable[float] | None = None,
    seeds: Sequence[int] = (0,),
    **changes: Any,
) -> pd.DataFrame:
    """Rows of `extension.measure` on the validation texts at the trained context, with their `learning rate`.

    `rates`: the recipe's grid unless given; `changes`: fields of TrainSpec. No training has no rate.
    """
    frames = []
    for rate in recipe.grid if rates is None else rates:
        pairs = (*changes.items(), ("learning_rate", rate))
        contexts = tuple({recipe.original_context, recipe.spec("full", **changes).context})
        study = ExtensionStudy(recipe, tuple(patterns), tuple(seeds), (VALIDATION,), contexts, changes=pairs)
        frames.append(measure(study, runs=runs, progress=False).assign(**{"learning rate": rate}))
    rows = pd.concat(frames, ignore_index=True)
    untrained = rows.seed.isna()
    rows["learning rate"] = rows["learning rate"].where(~untrained)
    same = [name for name in rows.columns if name != "learning rate"]
    return pd.concat([rows[~untrained], rows[untrained].drop_duplicates(same)], ignore_index=True)


def search_rates(recipe: Recipe, patterns: Sequence[str], *, runs: Path, **changes: Any) -> pd.DataFrame:
    """`validation_losses` over the recipe's grid, widened for each pattern until its best rate is inside."""
    found = [validation_losses(recipe, patterns, runs=runs, **changes)]
    for pattern in patterns:
        for _ in range(WIDENINGS):
            rates = chosen_rates(pd.concat(found)).set_index("method").loc[pattern]
            if rates.inside:
                break
            further = _beyond(pd.concat(found), pattern)
            found.append(validation_losses(recipe, [pattern], runs=runs, rates=[further], **changes))
    rows = pd.concat(found, ignore_index=True)
    return rows.drop_duplicates([*RATES, "seed", "context", "piece"], ignore_index=True)


def _beyond(rows: pd.DataFrame, pattern: str) -> float:
    """The rate next to the best one, outside of those tried; half a decade away, in round numbers."""
    means = mean_losses(rows).set_index("method").loc[[pattern]].set_index("learning rate").nll
    best = float(means.idxmin())
    factor = math.sqrt(10) if best == means.index.max() else 1 / math.sqrt(10)
    return float(f"{best * factor:.0e}")


def mean_losses(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean nats a token by method and rate at the longest context: columns method, learning rate, nll."""
    last = rows[(rows.context == rows.context.max()) & rows.seed.notna()]
    return last.groupby(RATES, as_index=False).nll.mean()


def chosen_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """The best rate of each method: method, learning rate, nll, inside (not at an end of its grid)."""
    lines = []
    for method, group in mean_losses(rows).groupby("method", sort=False):
        best = group.loc[group.nll.idxmin()]
        rate, rates = best["learning rate"], group["learning rate"]
        inside = bool(rates.min() < rate < rates.max())
        lines.append({"method": method, "learning rate": rate, "nll": best.nll, "inside": inside})
    return pd.DataFrame(lines)


def best_untrained(rows: pd.DataFrame) -> tuple[str, float]:
    """The best of what needs no training, at its own context or the longest: its name and mean nats."""
    untrained = rows[rows.seed.isna() & ((rows.method == BASE) | (rows.context == rows.context.max()))]
    means = untrained.groupby("method").nll.mean()
    return str(means.idxmin()), float(means.min())


def is_valid(rows: pd.DataFrame, reference: str = "full") -> bool:
    """Whether the recipe counts: trained `full` beats the best of what needs no training, on validation."""
    rates = chosen_rates(rows).set_index("method")
    return bool(rates.loc[reference].nll < best_untrained(rows)[1])


def is_converged(by_steps: "pd.Series[float]") -> bool:
    """Whether the last doubling of the steps changed perplexity by less than 1 % (`by_steps`: nats)."""
    last = by_steps.sort_index().iloc[-2:]
    return bool(len(last) == 2 and abs(math.expm1(last.iloc[0] - last.iloc[1])) < CONVERGED)
