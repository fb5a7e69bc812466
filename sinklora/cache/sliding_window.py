"""The newest tokens alone, which is what H2O's paper compares with under the name "Local"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from sinklora.cache.policies import CachePolicy, Split, budget_in_tokens


@dataclass(frozen=True)
class SlidingWindow(CachePolicy):
    """The newest tokens (H2O, arXiv 2306.14048, baseline "Local": no heavy hitters)."""

    name: ClassVar[str] = "local"
    paper: ClassVar[str] = "arXiv 2306.14048"
    stored_names: ClassVar[Mapping[str, str]] = MappingProxyType({"SlidingWindow": "Local"})

    def split(self, prompt_tokens: int) -> Split:
        return Split(0, 0, budget_in_tokens(self.budget, prompt_tokens))


Local = SlidingWindow
"""The name that H2O's paper has for it."""
