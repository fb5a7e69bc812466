"""Intervals, tests and the words for them: how sure is a mean, a difference, a share?"""

import math
from dataclasses import dataclass
from math import comb

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Accuracy:
    """Share of exact answers with its Wilson interval."""

    correct: int
    trials: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.trials or self.trials < 1:
            raise ValueError(
                f"correct={self.correct}, trials={self.trials}: expected 0 <= correct <= trials, and a trial"
            )

    @property
    def share(self) -> float:
        return self.correct / self.trials

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson score interval of the share (95 % for z = 1.96)."""
        n, p = self.trials, self.share
        middle = p + z * z / (2 * n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        # Rounding must not carry it out of [0, 1].
        return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


DASH = "–"


def spread(values: "pd.Series[float]", digits: int = 2) -> str:
    """Mean ± standard deviation over seeds; one value alone, none as a dash."""
    if values.dropna().empty:
        return DASH
    mean = f"{values.mean():z.{digits}f}"
    return mean if values.count() < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t with P(-t < T < t) = ``level`` for Student's T (12.706 for 1 degree of freedom, 4.303 for 2).

    T = sqrt(freedom) tan(angle) gives the angle a density proportional to cos(angle)^(freedom - 1).
    """
    if freedom < 1:
        raise ValueError(f"freedom={freedom}: expected at least 1")
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below / below[-1], angle)))


def interval(differences: "pd.Series[float]", level: float = 0.95) -> tuple[float, float]:
    """Student's t-interval of the mean of paired differences; NaN for fewer than two.

    It speaks of other seeds on the same test documents, not of other documents.
    """
    values = differences.dropna()
    if len(values) < 2:
        return math.nan, math.nan
    half = t_quantile(len(values) - 1, level) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()) - half, float(values.mean()) + half


def bonferroni(comparisons: int, level: float = 0.95) -> float:
    """The level of each of several intervals that hold together at ``level``."""
    return 1 - (1 - level) / max(comparisons, 1)


def judge(lead: "pd.Series[float]", less: str, more: str, level: float = 0.95) -> tuple[str, str]:
    """Whether a lead, paired by seed, is above 0, and the words for it: "``less`` by 0.30 ± 0.02, …"."""
    lead = lead.dropna()
    count, mean = len(lead), float(lead.mean())
    if not count:
        return "Not tested", "no seed in common"
    word, lead = (more, -lead) if mean < 0 else (less, lead)
    if count == 1:
        return "Not decided (one seed)", f"{word} by {abs(mean):.2f}"
    low, high = interval(lead, level)
    outcome = "Not decided" if low <= 0 else "Did not hold" if mean < 0 else "Held"
    return outcome, (
        f"{word} by {spread(lead)}, paired over {count} seeds ({100 * level:.4g} % t-interval {low:z.2f} to "
        f"{high:z.2f}), {word} in {int((lead > 0).sum())} of {count}"
    )


def between(differences: "pd.Series[float]") -> str:
    """The 95 % t-interval as text; a dash for fewer than two differences."""
    low, high = interval(differences)
    return DASH if math.isnan(low) else f"{low:z.2f} to {high:z.2f}"


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of so many pairs one way and the other, where either way is as likely."""
    pairs = wins + losses
    tail = sum(comb(pairs, k) for k in range(max(wins, losses), pairs + 1)) / 2**pairs
    return min(1.0, 2 * tail)
