"""Values over seeds as the numbers of a table: mean and standard deviation."""

import pandas as pd

from sinklora.records.tables import part


def mean_and_sd(heading: str, values: "pd.Series[float]") -> dict[str, float]:
    """The fields of a `Spread`: the mean, and the standard deviation (missing for one value)."""
    return {heading: float(values.mean()), part(heading, "sd"): float(values.std(ddof=1))}
