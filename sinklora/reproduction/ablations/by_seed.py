"""Measurements side by side: one row a training seed, one column a method; everything is paired by seed."""

import pandas as pd

from sinklora.reproduction.names import UNTRAINED


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


def closed_gap(rows: pd.DataFrame, context: int, method: str) -> "pd.Series[float]":
    """The share of the gap between SF-Attn and full attention that a method closes, seed by seed (in %)."""
    by_seed = perplexities(rows, context)
    return 100 * (by_seed.sf - by_seed[method]) / (by_seed.sf - by_seed.full)
