"""The policy that evicts nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from sinklora.cache.policies import UNBOUNDED, CachePolicy, Split


@dataclass(frozen=True)
class Full(CachePolicy):
    """Everything stays: the baseline, in the same code."""

    name: ClassVar[str] = "full"
    bounded: ClassVar[bool] = False

    budget: float | int = field(default=UNBOUNDED, init=False)

    def split(self, prompt_tokens: int) -> Split:
        return Split(0, 0, UNBOUNDED)
