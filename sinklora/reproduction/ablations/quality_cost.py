"""Quality against cost: every method in one table, and those that no other one beats at their cost (ours)."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from sinklora.evaluate.paired_effects import holm
from sinklora.evaluate.step_spec import StepCost
from sinklora.records.tables import Column, Number, Table, part
from sinklora.reproduction.extension.comparison import Losses
from sinklora.reproduction.extension.tables import ABOVE, Nats, estimate_fields
from sinklora.reproduction.report.claims import LEVEL

COST = "attention cost"

SECONDS, PEAK = "seconds a step", "peak of a step (GiB)"


def costs_and_gaps(
    found: Losses, costs: Mapping[str, float], steps: Mapping[str, StepCost] | None = None
) -> pd.DataFrame:
    """Attention cost against quality: method, cost, nats above full attention with their interval, and
    `best_at_its_cost`: no cheaper or equally dear method has a lower mean (the Pareto front).

    `steps`: what a step of some of the methods took; others have none.
    """
    lines = []
    for method, cost in costs.items():
        line = {"method": method, COST: cost, **estimate_fields(ABOVE, found.lead("full", method))}
        if steps is not None:
            line |= _step_fields(steps.get(method, StepCost(None, None)))
        lines.append(line)
    frame = pd.DataFrame(lines).sort_values([COST, ABOVE], ignore_index=True)
    lowest_before = frame[ABOVE].cummin().shift(fill_value=math.inf)
    return frame.assign(best_at_its_cost=frame[ABOVE] < lowest_before)


def _step_fields(cost: StepCost) -> dict[str, float]:
    peak = math.nan if cost.peak_bytes is None else cost.peak_bytes / 2**30
    return {SECONDS: math.nan if cost.seconds is None else cost.seconds, PEAK: peak}


def front_table(front: pd.DataFrame) -> Table:
    """The lines of `costs_and_gaps` as they are written."""
    measured = [Number(name, ".2f") for name in (SECONDS, PEAK) if name in front]
    shown = [Column("method"), Number(COST, ".4f"), *measured, Nats(ABOVE), Column("best_at_its_cost")]
    return Table(front, shown)


def best_at_cost(front: pd.DataFrame, most: float) -> str:
    """The method with the smallest gap among those of `costs_and_gaps` that cost at most so much."""
    affordable = front[front[COST] <= most]
    if affordable.empty:
        raise ValueError(f"most={most}: the cheapest method costs {front[COST].min():.3f}")
    return str(affordable.sort_values(ABOVE).method.iloc[0])


def front_verdict(found: Losses, costs: Mapping[str, float]) -> str:
    """What is best at SF-Attn's cost, what is not told apart from it, and what nothing beats on average.

    The best of k methods is compared with each of the others under one correction (Holm).
    """
    front = costs_and_gaps(found, costs)
    best = best_at_cost(front, costs["sf"])
    line = front[front.method == best].iloc[0]
    others = [str(name) for name in front[front[COST] <= costs["sf"]].method if name != best]
    near = _not_told_apart(found, best, others)
    apart = f"not told apart from it: {', '.join(near)}" if near else "better than every other one"
    unbeaten = ", ".join(front[front.best_at_its_cost].method)
    low, high = line[part(ABOVE, "low")], line[part(ABOVE, "high")]
    return (
        f"Best on average at no more than SF-Attn's cost: {best}, {line[ABOVE]:+.3f} nats above full "
        f"attention (95 % interval {low:+.3f} to {high:+.3f}); {apart} (Holm's correction for {len(others)} "
        f"comparisons). On average nothing is better at its cost than: {unbeaten}."
    )


def _not_told_apart(losses: Losses, best: str, others: Sequence[str]) -> list[str]:
    leads = [losses.lead(best, name) for name in others]
    adjusted = holm([lead.p for lead in leads])
    return [
        name
        for name, lead, p in zip(others, leads, adjusted, strict=True)
        if not (p < LEVEL and lead.estimate > 0)
    ]
