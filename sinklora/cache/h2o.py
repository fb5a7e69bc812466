"""H2O (arXiv 2306.14048): the newest tokens and the heavy hitters, which received most attention.

Here is the policy. Its scores are in `attention_scores`, who is evicted is decided in `eviction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from sinklora.cache.attention_scores import SUMMED, AttentionScores, Score, WindowScores
from sinklora.cache.checks import check_sinks
from sinklora.cache.policies import CachePolicy, Split, budget_in_tokens, in_tokens, split_with_sinks
from sinklora.cache.scores import Scorer
from sinklora.ranges import check_tokens, plain_fields


@dataclass(frozen=True)
class H2O(CachePolicy):
    """Heavy hitters and the newest tokens (H2O, arXiv 2306.14048, Algorithm 1).

    Give `budget` alone (split evenly, as in the H2O release), `budget` and `recent`, or `heavy` and
    `recent`; each a fraction of the prompt or tokens, of one kind. `sink_tokens`: so many first tokens are
    never evicted; they count as heavy hitters, and where a share of the prompt is too small for them recent
    tokens give way, up to the last one. `scoring`: summed attention unless given.
    Raises ValueError naming the argument.
    """

    name: ClassVar[str] = "h2o"
    paper: ClassVar[str] = "arXiv 2306.14048"
    sizes: ClassVar[tuple[str, ...]] = ("budget", "heavy", "recent", "sink_tokens")
    stored_names: ClassVar[Mapping[str, str]] = MappingProxyType({"sink_tokens": "protect", "scoring": "how"})

    budget: float | int | None = None  # type: ignore[assignment]
    heavy: float | int | None = None
    recent: float | int | None = None
    sink_tokens: int = 0
    scoring: Score = SUMMED

    def __post_init__(self) -> None:
        plain_fields(self)
        sizes = {name: getattr(self, name) for name in ("budget", "heavy", "recent")}
        sizes = {name: value for name, value in sizes.items() if value is not None}
        if set(sizes) not in ({"budget"}, {"budget", "recent"}, {"heavy", "recent"}):
            raise ValueError(f"{sizes}: give budget, budget and recent, or heavy and recent")
        for name, value in sizes.items():
            check_tokens(name, value, "the prompt", zero=name != "budget")
        if len({isinstance(value, float) for value in sizes.values()}) > 1:
            raise ValueError(f"{sizes}: give all of them in tokens (int) or all as fractions (float)")
        if self.budget is not None and self.recent is not None and self.recent > self.budget:
            raise ValueError(
                f"recent={self.recent!r} is larger than budget={self.budget!r}, of which it is a part"
            )
        if self.heavy is not None and self.recent is not None:
            check_tokens("heavy + recent", self.heavy + self.recent, "the prompt")
        if not isinstance(self.scoring, Score):
            raise ValueError(f"scoring={self.scoring!r}: expected a Score, such as Score(decay=0.97)")
        check_sinks(self.sink_tokens, self.whole_budget)
        if isinstance(self.recent, int) and self.sink_tokens > (heavy := self.whole_budget - self.recent):
            raise ValueError(
                f"sink_tokens={self.sink_tokens}: more than the {heavy} heavy hitters beside "
                f"recent={self.recent}, of which sink tokens are a part"
            )

    @property
    def whole_budget(self) -> float | int:
        """The budget, or heavy hitters and newest tokens together."""
        return self.budget if self.budget is not None else (self.heavy or 0) + (self.recent or 0)

    def split(self, prompt_tokens: int) -> Split:
        if self.budget is None:
            assert self.heavy is not None and self.recent is not None  # checked above
            recent = in_tokens(self.recent, prompt_tokens)
            heavy = max(in_tokens(self.heavy, prompt_tokens), 1 - recent)
        else:
            total = budget_in_tokens(self.budget, prompt_tokens)
            recent = total - total // 2 if self.recent is None else in_tokens(self.recent, prompt_tokens)
            heavy = total - recent
        return split_with_sinks(self.sink_tokens, heavy, recent)

    def with_budget(self, budget: float | int) -> CachePolicy:
        """The same with another budget, of which the newest tokens have the share that they have now."""
        if self.recent is None:
            return super().with_budget(budget)
        check_tokens("budget", budget, "the prompt")
        recent = budget * (self.recent / self.whole_budget)
        newest = recent if isinstance(budget, float) else round(recent)
        return replace(self, budget=budget, heavy=None, recent=newest)

    def with_fixed_budget(self, prompt_tokens: int) -> CachePolicy:
        if not self.is_fraction or self.recent is None:
            return super().with_fixed_budget(prompt_tokens)
        parts = self.split(prompt_tokens)
        return replace(self, budget=parts.total, heavy=None, recent=parts.recent, sink_tokens=parts.protected)

    def make_scorer(self, empty: Tensor) -> Scorer:
        return (
            WindowScores(self.scoring, empty) if self.scoring.window else AttentionScores(self.scoring, empty)
        )
