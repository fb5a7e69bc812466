"""Measurements as `extension.measure` gives them, by hand."""

from collections.abc import Mapping, Sequence

import pandas as pd

Losses = Mapping[str, Sequence[Sequence[float]]]  # method -> [seeds][pieces]; an untrained one has no seed


def measured_rows(
    by_context: Mapping[int, Losses], untrained: Sequence[str] = (), test_set: str = "Table 1"
) -> pd.DataFrame:
    lines = [
        {
            "method": method,
            "seed": None if method in untrained else seed,
            "attention": "full",
            "test_set": test_set,
            "context": context,
            "group": f"g{place % 2}",
            "piece": f"p{place}",
            "nll": nll,
            "tokens": 99,
        }
        for context, losses in by_context.items()
        for method, by_seed in losses.items()
        for seed, by_piece in enumerate(by_seed)
        for place, nll in enumerate(by_piece)
    ]
    return pd.DataFrame(lines).astype({"seed": "Int64"})
