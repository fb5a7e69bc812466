"""Values over seeds as the numbers of a table, and in the words of its caption."""

from collections.abc import Sequence

import pandas as pd

from sinklora.records.tables import part


def mean_and_sd(heading: str, values: "pd.Series[float]") -> dict[str, float]:
    """The fields of a `Spread`: the mean, and the standard deviation (missing for one value)."""
    return {heading: float(values.mean()), part(heading, "sd"): float(values.std(ddof=1))}


def mean_over(seeds: Sequence[int], *, spread: bool = False) -> str:
    """What a caption says of values over seeds (`spread`: with their standard deviation); one has no mean."""
    if len(seeds) == 1:
        return "one seed"
    return f"mean ± standard deviation over {len(seeds)} seeds" if spread else "mean over seeds"


def over(seeds: Sequence[int], units: str) -> str:
    """What intervals are over: seeds and units of text, or these alone where there is one seed."""
    return units if len(seeds) == 1 else f"seeds and {units}"
