"""Quality against attention cost: every method in one table, and those that no other one beats at their cost
(ours). `rows` are those of `extension.measure`, paired by seed.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from sinklora.evaluate.statistics import bonferroni, interval, spread
from sinklora.reproduction.ablations.by_seed import perplexities


def costs_and_gaps(rows: pd.DataFrame, context: int, costs: Mapping[str, float]) -> pd.DataFrame:
    """Attention cost against quality: method, cost, gap (mean), low, high (95 %), seeds, best_at_its_cost.

    `best_at_its_cost`: no cheaper or equally dear method has a lower mean gap (the Pareto front).
    """
    by_seed = perplexities(rows, context)
    lines = []
    for method in costs:
        gaps = (by_seed[method] - by_seed.full).dropna()
        low, high = interval(gaps)
        lines.append(
            {
                "method": method,
                "attention cost": costs[method],
                "gap to full": float(gaps.mean()),
                "low": low,
                "high": high,
                "seeds": len(gaps),
            }
        )
    frame = pd.DataFrame(lines).sort_values(["attention cost", "gap to full"], ignore_index=True)
    lowest_before = frame["gap to full"].cummin().shift(fill_value=math.inf)
    return frame.assign(best_at_its_cost=frame["gap to full"] < lowest_before)


def best_at_cost(front: pd.DataFrame, most: float) -> str:
    """The method with the smallest gap among those of `costs_and_gaps` that cost at most so much."""
    affordable = front[front["attention cost"] <= most]
    if affordable.empty:
        raise ValueError(f"most={most}: the cheapest method costs {front['attention cost'].min():.3f}")
    return str(affordable.sort_values("gap to full").method.iloc[0])


def front_verdict(rows: pd.DataFrame, context: int, costs: Mapping[str, float]) -> str:
    """What is best at SF-Attn's cost and at 1.3 times that, how sure that is, and what nothing beats.

    The best of k methods is compared with each of the others at a level corrected for k - 1 comparisons.
    """
    front = costs_and_gaps(rows, context, costs)
    limits = {"SF-Attn's cost": costs["sf"], "1.3 times that": 1.3 * costs["sf"]}
    sentences = [_best_within(rows, context, front, name, most) for name, most in limits.items()]
    unbeaten = ", ".join(front[front.best_at_its_cost].method)
    return f"{' '.join(sentences)} On average nothing is better at its cost than: {unbeaten}."


def _best_within(rows: pd.DataFrame, context: int, front: pd.DataFrame, limit: str, most: float) -> str:
    by_seed = perplexities(rows, context)
    best = best_at_cost(front, most)
    gaps = (by_seed[best] - by_seed.full).dropna()
    named = f"Best on average at no more than {limit}: {best}, gap to full {spread(gaps)}"
    if len(gaps) < 2:
        return f"{named} (one seed, not decided)."
    low, high = interval(gaps)
    others = [str(name) for name in front[front["attention cost"] <= most].method if name != best]
    level = bonferroni(len(others))
    near = _not_told_apart(by_seed, best, others, level)
    apart = f"not told apart from it: {', '.join(near)}" if near else "better than every other one"
    return (
        f"{named} (95 % t-interval {low:z.2f} to {high:z.2f}); {apart} (paired {100 * level:.4g} % "
        f"t-intervals, corrected for {len(others)} comparisons)."
    )


def _not_told_apart(by_seed: pd.DataFrame, best: str, others: Sequence[str], level: float) -> list[str]:
    """Those that are not surely worse than the best, paired by seed; also those with fewer than two seeds."""
    return [name for name in others if not interval(by_seed[name] - by_seed[best], level)[0] > 0]
