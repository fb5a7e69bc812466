"""Shares of right answers with their intervals, and levels of several intervals together."""

import math
from dataclasses import dataclass

from scipy import stats


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
        level = math.erf(z / math.sqrt(2))
        ends = stats.binomtest(self.correct, self.trials).proportion_ci(level, method="wilson")
        return float(ends.low), float(ends.high)


def bonferroni(comparisons: int, level: float = 0.95) -> float:
    """The level of each of several intervals that hold together at `level`."""
    return 1 - (1 - level) / max(comparisons, 1)
