"""Pattern schedules: the pattern changes while a model trains: cheap steps come first and full ones last.

Ours, not the paper's. What SF-Attn lacks at the end is that no window has ever seen the whole row; a few
steps of full attention mend most of that, and narrower windows before them pay for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import FULL, find_pattern


@dataclass(frozen=True)
class PatternSchedule:
    """Patterns in the order in which they are used, each for a share of the steps; shares add up to 1.

    Raises ValueError for shares that do not.
    """

    stages: tuple[tuple[float, Pattern], ...]

    def __post_init__(self) -> None:
        if not self.stages or any(share <= 0 for share, _ in self.stages):
            raise ValueError(f"stages={self.stages}: expected at least one, each with a share above 0")
        if abs(sum(share for share, _ in self.stages) - 1) > 1e-9:
            raise ValueError(f"stages={self.stages}: expected shares that add up to 1")

    def pattern_at(self, step: int, steps: int) -> Pattern:
        """The pattern of a step (0 is the first) of a run of so many steps."""
        if not 0 <= step < steps:
            raise ValueError(f"step={step}: expected 0 to {steps - 1}")
        passed = 0.0
        for share, pattern in self.stages:
            passed += share
            if step < round(passed * steps):
                return pattern
        return self.stages[-1][1]

    def density(self, num_heads: int, num_tokens: int, steps: int) -> float:
        """Visible pairs over causal pairs, mean over the steps: attention work as a share of full's."""
        used = [self.pattern_at(step, steps) for step in range(steps)]
        return sum(p.density(num_heads, num_tokens) * used.count(p) for p in set(used)) / steps

    def to_list(self) -> list[dict[str, Any]]:
        """JSON types that say everything about it."""
        return [{"share": share, "pattern": pattern.to_dict()} for share, pattern in self.stages]


PATTERN_SCHEDULES: dict[str, PatternSchedule] = {
    # Windows of an eighth of the row, then everything: at four windows' cost and a third.
    "sf_growing": PatternSchedule(((0.78, find_pattern("sf(group_size=0.125)")), (0.22, FULL))),
    "sf_then_full": PatternSchedule(((0.9, find_pattern("sf")), (0.1, FULL))),
}


def find_schedule(name: str) -> PatternSchedule | None:
    """The pattern schedule of a name; None for the name of a pattern, ValueError for neither."""
    if name in PATTERN_SCHEDULES:
        return PATTERN_SCHEDULES[name]
    try:
        find_pattern(name)
    except ValueError as error:
        raise ValueError(f"{error}, or a pattern schedule: {', '.join(PATTERN_SCHEDULES)}") from error
    return None
