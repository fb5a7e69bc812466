"""What the measurements of many patterns say: tables of ablations, sweeps, and schedules (Tables 7, 8, 9; the
schedules are ours). `quality_cost` compares them all by their cost.

`rows` are those of `extension.measure`; everything is paired by seed and judged at one test context.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import pandas as pd
from transformers import AutoConfig

from sinklora.evaluate.statistics import between, bonferroni, interval, judge, spread
from sinklora.records.tables import DASH
from sinklora.reproduction.names import UNTRAINED
from sinklora.train.spec import TrainSpec


def attention_costs(training: TrainSpec, methods: Iterable[str]) -> dict[str, float]:
    """Query-key pairs over causal pairs, mean over the steps of a training with each method: 1 is full."""
    heads = AutoConfig.from_pretrained(training.base).num_attention_heads
    costs = {}
    for method in methods:
        spec = dataclasses.replace(training, pattern=method)
        used = Counter(spec.attention_pattern(step) for step in range(spec.steps))
        pairs = sum(pattern.density(heads, spec.context) * count for pattern, count in used.items())
        costs[method] = pairs / spec.steps
    return costs


def perplexities(rows: pd.DataFrame, context: int, test_set: str | None = None) -> pd.DataFrame:
    """Perplexity at a test context: one row a seed, one column a method.

    Raises ValueError if that context was not measured, or a method twice with one seed.
    """
    chosen = rows[(rows.context == context) & rows.seed.notna() & (rows.method != UNTRAINED)]
    if test_set is not None:
        chosen = chosen[chosen.test_set == test_set]
    if chosen.empty:
        raise ValueError(f"context={context}: measured are {sorted(rows.context.unique())}")
    if chosen.duplicated(["method", "seed"]).any():
        raise ValueError("rows: a method was measured twice with one seed; name a test_set")
    return chosen.pivot(index="seed", columns="method", values="perplexity").astype(float)


def ablation_table(
    rows: pd.DataFrame,
    context: int,
    labels: Mapping[str, str],
    *,
    reference: str,
    published: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """One row a method: perplexity, gap to full attention, lead over the `reference` method.

    `labels`: method -> what to call it; `published`: method -> the paper's perplexity. Mean ± standard
    deviation over seeds and the 95 % t-intervals of paired differences. A method without measurements is
    shown with dashes.
    """
    found = perplexities(rows, context)
    lines = []
    for method, label in labels.items():
        mine = found.get(method, pd.Series(dtype=float))
        lines.append(
            {
                "attention in training": label,
                "name": method,
                f"perplexity at {context}": spread(mine),
                "gap to full": DASH if method == "full" else spread(mine - found.full),
                "95 % interval of the gap": DASH if method == "full" else between(mine - found.full),
                f"lower than {reference} by": DASH
                if method == reference
                else spread(found[reference] - mine),
                "95 % interval": DASH if method == reference else between(found[reference] - mine),
                "seeds": int(mine.count()),
                **({"paper": published.get(method, DASH)} if published else {}),
            }
        )
    return pd.DataFrame(lines)


def order_verdict(rows: pd.DataFrame, context: int, order: Sequence[str], labels: Mapping[str, str]) -> str:
    """Whether each method is better than the next one of an order (the paper's, best first)."""
    found = perplexities(rows, context)
    sentences = []
    for better, worse in pairwise(order):
        outcome, words = judge(found[worse] - found[better], "lower", "higher")
        sentences.append(f"{outcome}: {labels[better]} before {labels[worse]}; perplexity {words}.")
    return " ".join(sentences)


def condition_table(
    measured: Mapping[str, pd.DataFrame],
    methods: Sequence[str],
    costs: Mapping[str, Mapping[str, float]],
) -> pd.DataFrame:
    """One row a method; for each condition its perplexity, gap to full attention and cost (Table 9).

    `measured`: what the condition is called -> rows, judged at the longest context they were tested at;
    `costs`: the same names -> `attention_costs` of that condition's training, since sinks weigh more in
    shorter rows and a schedule's shares are rounded to whole steps. Raises ValueError for other names.
    """
    if set(costs) != set(measured):
        raise ValueError(f"costs={sorted(costs)}: expected those of the conditions, {sorted(measured)}")
    found = {name: perplexities(rows, int(rows.context.max())) for name, rows in measured.items()}
    lines = []
    for method in methods:
        line: dict[str, str] = {"trained with": method}
        for name, values in found.items():
            mine = values.get(method, pd.Series(dtype=float))
            line[f"{name}: perplexity"] = spread(mine)
            line[f"{name}: gap to full"] = DASH if method == "full" else spread(mine - values.full)
            line[f"{name}: attention cost"] = f"{costs[name][method]:.4f}"
        lines.append(line)
    return pd.DataFrame(lines)


def condition_verdict(measured: Mapping[str, pd.DataFrame], better: str, worse: str) -> str:
    """Whether one method is better than another under each condition."""
    sentences = []
    for name, rows in measured.items():
        found = perplexities(rows, int(rows.context.max()))
        outcome, words = judge(found[worse] - found[better], "lower", "higher")
        sentences.append(f"{name}: {outcome[0].lower()}{outcome[1:]}, {better} is {words}.")
    return f"Is {better} better than {worse}? {' '.join(sentences)}"


def sweep_table(
    rows: pd.DataFrame, context: int, field: str, methods: Mapping[float, str], costs: Mapping[str, float]
) -> pd.DataFrame:
    """One row a value of a field: attention cost, gap to full attention with its interval.

    `methods`: value of the field -> the method that has it.
    """
    found = perplexities(rows, context)
    lines = []
    for value, method in methods.items():
        gaps = found[method] - found.full
        lines.append(
            {
                field: f"{value:g}",
                "name": method,
                "attention cost": costs[method],
                f"perplexity at {context}": spread(found[method]),
                "gap to full": spread(gaps),
                "95 % interval of the gap": between(gaps),
                "seeds": int(gaps.count()),
            }
        )
    return pd.DataFrame(lines)


def sweep_verdict(rows: pd.DataFrame, context: int, field: str, methods: Mapping[float, str]) -> str:
    """Which value is best on average, and whether it is surely better than the one that METHOD defines
    SF-Attn with: by an interval corrected for having picked the best of several values.
    """
    found = perplexities(rows, context)
    means = {value: float(found[method].mean()) for value, method in methods.items()}
    best = min(means, key=means.__getitem__)
    usual = next((value for value, method in methods.items() if method == "sf"), None)
    lowest = f"Lowest mean perplexity with {field} = {best:g}"
    if usual is None or best == usual:
        return f"{lowest}." if usual is None else f"{lowest}, as in SF-Attn."
    others = len(methods) - 1
    lead = found.sf - found[methods[best]]
    outcome, words = judge(lead, "lower", "higher", bonferroni(others))
    note = f"; corrected (Bonferroni) for {others} comparisons" if others > 1 and lead.count() > 1 else ""
    return f"{lowest}. {outcome}: better than SF-Attn's {usual:g}; perplexity {words}{note}."


def closed_gap(rows: pd.DataFrame, context: int, method: str) -> "pd.Series[float]":
    """The share of the gap between SF-Attn and full attention that a method closes, seed by seed (in %)."""
    found = perplexities(rows, context)
    return 100 * (found.sf - found[method]) / (found.sf - found.full)


def recipe_table(
    rows: pd.DataFrame, context: int, methods: Sequence[str], costs: Mapping[str, float]
) -> pd.DataFrame:
    """What closes how much of SF-Attn's gap to full attention, and at what cost beside SF-Attn's."""
    found = perplexities(rows, context)
    usual = costs["sf"]
    lines = []
    for method in methods:
        closed = closed_gap(rows, context, method)
        lines.append(
            {
                "trained with": method,
                "attention cost": costs[method],
                "cost, times SF-Attn's": costs[method] / usual,
                f"perplexity at {context}": spread(found[method]),
                "gap to full": spread(found[method] - found.full),
                "of SF-Attn's gap closed (%)": spread(closed, 1),
                "95 % interval (%)": between(closed),
                "seeds": int(closed.count()),
            }
        )
    return pd.DataFrame(lines)


def recipe_verdict(
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
