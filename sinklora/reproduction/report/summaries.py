"""Values over seeds as the numbers of a table: mean, standard deviation, the ends of an interval."""

import pandas as pd

from sinklora.evaluate.statistics import interval
from sinklora.records.tables import part


def mean_and_sd(heading: str, values: "pd.Series[float]") -> dict[str, float]:
    """The fields of a `Spread`: the mean, and the standard deviation (missing for one value)."""
    return {heading: float(values.mean()), part(heading, "sd"): float(values.std(ddof=1))}


def mean_sd_interval(heading: str, differences: "pd.Series[float]") -> dict[str, float]:
    """The same with the ends of the 95 % t-interval of the mean (missing for fewer than two values)."""
    low, high = interval(differences)
    fields = mean_and_sd(heading, differences)
    return {**fields, part(heading, "low"): low, part(heading, "high"): high}
