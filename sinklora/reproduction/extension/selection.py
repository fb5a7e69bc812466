"""What is chosen on validation texts before anything is tested: learning rates, steps, positions."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from sinklora.evaluate.paired_effects import Effect, difference
from sinklora.reproduction.extension.comparison import document_of
from sinklora.reproduction.extension.readings import FULL, joined, made_of, read
from sinklora.reproduction.extension.recipe import VALIDATION, Recipe
from sinklora.reproduction.extension.study import ExtensionStudy, baselines, measure
from sinklora.reproduction.names import BASE
from sinklora.train.divergence import DivergedError
from sinklora.train.spec import TrainSpec

RATES = ["method", "learning rate"]

Search = Callable[..., pd.DataFrame]  # `search_rates` or `at_own_rates`

CONVERGED = 0.01  # of perplexity: what the last doubling of the steps may still change


def validation_losses(
    recipe: Recipe,
    patterns: Sequence[str],
    *,
    runs: Path,
    rates: Iterable[float] | None = None,
    seeds: Sequence[int] = (0,),
    texts: str = VALIDATION,
    **changes: Any,
) -> pd.DataFrame:
    """Rows of `extension.measure` on the validation texts at the trained context, with their `learning rate`
    and in `attrs` what all were made of.

    `rates`: the recipe's grid unless given; `texts`: which validation texts; `changes`: fields of TrainSpec.
    No training has no rate. A rate at which a pattern's training diverges is infinitely bad: one row a seed.
    """
    frames = []
    for rate in recipe.grid if rates is None else rates:
        pairs = (*changes.items(), ("learning_rate", rate))
        contexts = tuple({recipe.original_context, recipe.spec("full", **changes).context})
        study = ExtensionStudy(recipe, tuple(patterns), tuple(seeds), (texts,), contexts, changes=pairs)
        frames.append(_measured(study, runs).assign(**{"learning rate": rate}))
    rows = joined(frames)
    untrained = rows.seed.isna()
    rows["learning rate"] = rows["learning rate"].where(~untrained)
    same = [name for name in rows.columns if name != "learning rate"]
    return joined([rows[~untrained], rows[untrained].drop_duplicates(same)])


def _measured(study: ExtensionStudy, runs: Path) -> pd.DataFrame:
    """Rows of `measure`; of a pattern that diverges, a row a seed whose nats are infinite."""
    try:
        return measure(study, runs=runs, progress=False)
    except DivergedError as error:
        diverged = error.spec.pattern
    lines = [
        {"method": diverged, "seed": seed, "test_set": study.test_sets[0], "context": max(study.contexts)}
        for seed in study.seeds
    ]
    infinite = pd.DataFrame(lines).assign(nll=math.inf, attention=FULL).astype({"seed": "Int64"})
    others = tuple(pattern for pattern in study.patterns if pattern != diverged)
    measured = _measured(replace(study, patterns=others), runs) if others else _untrained(study, runs)
    rows = pd.concat([measured, infinite], ignore_index=True)
    rows.attrs = measured.attrs
    return rows


def _untrained(study: ExtensionStudy, runs: Path) -> pd.DataFrame:
    return read(study.recipe, study.test_sets, baselines(study), runs=runs, progress=False)


def search_rates(
    recipe: Recipe, patterns: Sequence[str], *, runs: Path, texts: str = VALIDATION, **changes: Any
) -> pd.DataFrame:
    """`validation_losses` over the recipe's grid, widened for each pattern until its best rate is inside."""
    options: dict[str, Any] = {"runs": runs, "texts": texts, **changes}
    searched = [validation_losses(recipe, patterns, **options)]
    for pattern in patterns:
        for _ in range(recipe.widenings):
            rates = chosen_rates(pd.concat(searched))
            if rates[rates.method == pattern].inside.all():
                break
            further = _beyond(pd.concat(searched), pattern)
            searched.append(validation_losses(recipe, [pattern], rates=[further], **options))
    rows = joined(searched)
    return rows.drop_duplicates([*RATES, "seed", "context", "piece"], ignore_index=True)


def specs_to_search(
    recipe: Recipe, patterns: Sequence[str], *, grid: bool, **changes: Any
) -> Iterator[TrainSpec]:
    """The training runs with which `search_rates` begins (`grid`), or all of `at_own_rates`.

    What a search widens to depends on what these come to.
    """
    for pattern in patterns if grid else dict.fromkeys(["full", *patterns]):
        for rate in recipe.grid if grid else (recipe.rate(pattern),):
            yield recipe.spec(pattern, **changes, learning_rate=rate)


def at_own_rates(
    recipe: Recipe, patterns: Sequence[str], *, runs: Path, texts: str = VALIDATION, **changes: Any
) -> pd.DataFrame:
    """`validation_losses` of each pattern at the recipe's rate for it, in place of a search."""
    frames = [
        validation_losses(recipe, [name], rates=[recipe.rate(name)], runs=runs, texts=texts, **changes)
        for name in dict.fromkeys(["full", *patterns])
    ]
    rows = joined(frames)
    return rows.drop_duplicates([*RATES, "seed", "context", "piece"], ignore_index=True)


def _beyond(rows: pd.DataFrame, pattern: str) -> float:
    """The rate next to the best one, outside of those tried; half a decade away, in round numbers."""
    means = mean_losses(rows)
    # Where all diverge, the smallest is next to what may not.
    of_pattern = means[means.method == pattern].sort_values(["nll", "learning rate"])
    best = float(of_pattern["learning rate"].iloc[0])
    factor = math.sqrt(10) if best == of_pattern["learning rate"].max() else 1 / math.sqrt(10)
    return float(f"{best * factor:.0e}")


def mean_losses(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean nats a token by method and rate at the longest context: columns method, learning rate, nll."""
    last = rows[(rows.context == rows.context.max()) & rows.seed.notna()]
    return last.groupby(RATES, as_index=False).nll.mean()


def chosen_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """The best rate of each method: method, learning rate, nll, inside (not at an end of its grid)."""
    lines = []
    for method, group in mean_losses(rows).groupby("method", sort=False):
        rates = group["learning rate"]
        in_order = group.sort_values(["nll", "learning rate"])[["learning rate", "nll"]]
        rate, nll = next(in_order.itertuples(index=False, name=None))
        inside = bool(rates.min() < rate < rates.max())
        lines.append({"method": method, "learning rate": rate, "nll": nll, "inside": inside})
    return pd.DataFrame(lines)


def hardly_trained(rows: pd.DataFrame) -> dict[str, str]:
    """Methods that validation texts leave next to untrained, and why: their best rate is the least tried."""
    reason = "validation texts prefer the smallest learning rate tried ({:g}), next to no training"
    found = {}
    for method, group in mean_losses(rows).groupby("method"):
        rates = group["learning rate"].tolist()
        best = rates[int(group.nll.argmin())]
        if len(rates) > 1 and best == min(rates):
            found[str(method)] = reason.format(best)
    return found


def untrained_losses(rows: pd.DataFrame) -> dict[str, float]:
    """Mean nats of all that needs no training, the best first: the base at its own context, the others at the
    longest.
    """
    untrained = rows[rows.seed.isna() & ((rows.method == BASE) | (rows.context == rows.context.max()))]
    means = untrained.groupby("method").nll.mean().sort_values()
    return {str(name): float(nll) for name, nll in means.items()}


def best_untrained(rows: pd.DataFrame) -> tuple[str, float]:
    """The best of what needs no training: its name and mean nats."""
    return next(iter(untrained_losses(rows).items()))


def improvement(rows: pd.DataFrame, reference: str = "full") -> Effect:
    """Nats that `full` at its best rate saves on the best of no training, on the validation texts."""
    start, rates = best_untrained(rows)[0], chosen_rates(rows)
    rate = rates["learning rate"][rates.method == reference].item()
    trained = rows[(rows.method == reference) & (rows["learning rate"] == rate)]
    untrained = rows[rows.method == start]
    means = [
        _by_document(of_method[of_method.context == of_method.context.max()])
        for of_method in (untrained, trained)
    ]
    return difference(*(mean.loc[means[0].index].to_numpy()[None] for mean in means))


def _by_document(rows: pd.DataFrame) -> "pd.Series[float]":
    by_piece = rows.groupby("piece").nll.mean()
    return by_piece.groupby(document_of).mean()


def is_valid(rows: pd.DataFrame, reference: str = "full") -> bool:
    """Whether the recipe counts: `improvement` is surely more than 0."""
    return not _always_diverged(rows, reference) and improvement(rows, reference).low > 0


def _always_diverged(rows: pd.DataFrame, method: str) -> bool:
    means = mean_losses(rows)
    return bool(means.nll[means.method == method].min() == math.inf)


def losses_by_steps(
    recipe: Recipe, steps: Iterable[int], *, runs: Path, search: Search = search_rates
) -> pd.DataFrame:
    """Validation loss of full attention at its best rate: columns steps, learning rate, nll, inside; `attrs`:
    what all were made of.
    """
    searched = {count: search(recipe, ["full"], runs=runs, steps=count) for count in sorted(steps)}
    best = {count: chosen_rates(rows).iloc[0].drop("method") for count, rows in searched.items()}
    found = pd.DataFrame([{"steps": count, **line} for count, line in best.items()])
    found.attrs |= made_of(searched.values())
    return found


def validity(rows: pd.DataFrame) -> str:
    """Whether the recipe counts, and by how much; in words."""
    if _always_diverged(rows, "full"):
        return "Not valid: full attention diverged at every learning rate tried."
    saved, start = improvement(rows), best_untrained(rows)[0]
    outcome = "Valid" if is_valid(rows) else "Not valid"
    return (
        f"{outcome}: trained full attention saves {saved.estimate:.4f} nats a token on {start} "
        f"(95 % interval {saved.low:.4f} to {saved.high:.4f}; {saved.units})."
    )


def rates_as_chosen(recipe: Recipe, rows: pd.DataFrame) -> str:
    """Whether the recipe trains each pattern at the rate that validation prefers; in words."""
    chosen = chosen_rates(rows)
    other = [
        f"{method} at {recipe.rate(method):g} though {rate:g} is better"
        for method, rate in zip(chosen.method, chosen["learning rate"], strict=True)
        if not math.isclose(recipe.rate(method), rate)
    ]
    return (
        f"The recipe trains {'; '.join(other)}." if other else "The recipe trains at the rates chosen here."
    )


def more_steps_in_words(by_steps: pd.DataFrame, steps: int) -> str:
    """Whether full attention would be better with more steps than a table's `steps`: at the most steps tried,
    each number at its own best rate, on the validation texts. `by_steps`: as `losses_by_steps` has it.
    """
    nats = {int(count): float(nll) for count, nll in zip(by_steps.steps, by_steps.nll, strict=True)}
    most = max(nats, default=0)
    if steps not in nats or most <= steps:
        return f"Whether more than {steps} steps would be better was not measured."
    change = math.expm1(nats[most] - nats[steps])
    measured = f"{most} steps change full attention's validation perplexity by {100 * change:+.1f} %"
    if change <= -CONVERGED:
        return f"{measured}: trained for {steps}, the table is short of that."
    return f"{measured}: the table's {steps} are not short of that."


def is_converged(by_steps: "pd.Series[float]") -> bool:
    """Whether the last doubling of the steps changed perplexity by less than 1 %.

    `by_steps`: nats a token, by the number of steps.
    """
    last = by_steps.sort_index().iloc[-2:]
    return bool(len(last) == 2 and abs(math.expm1(last.iloc[0] - last.iloc[1])) < CONVERGED)
