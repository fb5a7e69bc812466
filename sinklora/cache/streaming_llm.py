"""StreamingLLM (arXiv 2309.17453): attention sinks and a window of the newest tokens.

Its streams far beyond the trained length need positions inside the cache: `BudgetCache(positions="cache")`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sinklora.cache.checks import check_sinks
from sinklora.cache.policies import CachePolicy, Split, budget_in_tokens


@dataclass(frozen=True)
class StreamingLLM(CachePolicy):
    """The first `sink_tokens` tokens and the newest ones; together they make the budget.

    Where the budget is not larger than `sink_tokens`, one token of it is recent and the others are sinks.
    """

    name: ClassVar[str] = "streaming"
    paper: ClassVar[str] = "arXiv 2309.17453"

    sink_tokens: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sinks(self.sink_tokens, self.budget)

    def split(self, prompt_tokens: int) -> Split:
        total = budget_in_tokens(self.budget, prompt_tokens)
        sinks = min(self.sink_tokens, total - 1)
        return Split(sinks, 0, total - sinks)
