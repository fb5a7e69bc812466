"""What the ablations, sweeps and schedules say (Tables 7, 8, 9; the schedules are ours).

`rows` are those of `extension.measure`; everything is paired by seed and judged at one test context.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import pandas as pd

from sinklora.evaluate.statistics import bonferroni, interval, judge
from sinklora.reproduction.ablations.by_seed import closed_gap, perplexities


def order_verdict(rows: pd.DataFrame, context: int, order: Sequence[str], labels: Mapping[str, str]) -> str:
    """Whether each method is better than the next one of an order (the paper's, best first)."""
    by_seed = perplexities(rows, context)
    sentences = []
    for better, worse in pairwise(order):
        outcome, words = judge(by_seed[worse] - by_seed[better], "lower", "higher")
        sentences.append(f"{outcome}: {labels[better]} before {labels[worse]}; perplexity {words}.")
    return " ".join(sentences)


def condition_verdict(measured: Mapping[str, pd.DataFrame], better: str, worse: str) -> str:
    """Whether one method is better than another under each condition."""
    sentences = []
    for name, rows in measured.items():
        by_seed = perplexities(rows, int(rows.context.max()))
        outcome, words = judge(by_seed[worse] - by_seed[better], "lower", "higher")
        sentences.append(f"{name}: {outcome[0].lower()}{outcome[1:]}, {better} is {words}.")
    return f"Is {better} better than {worse}? {' '.join(sentences)}"


def sweep_verdict(rows: pd.DataFrame, context: int, field: str, methods: Mapping[float, str]) -> str:
    """Which value is best on average, and whether it is surely better than the one that METHOD defines
    SF-Attn with: by an interval corrected for having picked the best of several values.
    """
    by_seed = perplexities(rows, context)
    means = {value: float(by_seed[method].mean()) for value, method in methods.items()}
    best = min(means, key=means.__getitem__)
    usual = next((value for value, method in methods.items() if method == "sf"), None)
    lowest = f"Lowest mean perplexity with {field} = {best:g}"
    if usual is None or best == usual:
        return f"{lowest}." if usual is None else f"{lowest}, as in SF-Attn."
    others = len(methods) - 1
    lead = by_seed.sf - by_seed[methods[best]]
    outcome, words = judge(lead, "lower", "higher", bonferroni(others))
    note = f"; corrected (Bonferroni) for {others} comparisons" if others > 1 and lead.count() > 1 else ""
    return f"{lowest}. {outcome}: better than SF-Attn's {usual:g}; perplexity {words}{note}."


def schedule_verdict(
    rows: pd.DataFrame, context: int, methods: Sequence[str], costs: Mapping[str, float], *, goal: float = 60
) -> str:
    """Whether each schedule closes `goal` per cent of the gap at no more than 1.3 times SF-Attn's cost.

    Decided where the 95 % t-interval over seeds lies on one side of the goal, or where the cost is too high.
    """
    usual = costs["sf"]
    sentences = []
    for method in methods:
        closed = closed_gap(rows, context, method).dropna()
        times = costs[method] / usual
        low, high = interval(closed)
        within = f" (95 % t-interval {low:.0f} to {high:.0f})" if not math.isnan(low) else " (one seed)"
        sentences.append(
            f"{_reached(closed, goal, times <= 1.3)}: {method} closes {closed.mean():.0f} % of the gap"
            f"{within} at {times:.2f} times SF-Attn's attention cost; the goal was {goal:.0f} % at 1.3 times."
        )
    return " ".join(sentences)


def _reached(closed: "pd.Series[float]", goal: float, cheap: bool) -> str:
    if not cheap:  # the cost is known, whatever the seeds say
        return "Not reached"
    word = "Reached" if closed.mean() >= goal else "Not reached"
    if len(closed) < 2:
        return f"{word} by one seed"
    low, high = interval(closed)
    return f"{word} on average, not decided" if low < goal <= high else word
