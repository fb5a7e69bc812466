"""TOVA (arXiv 2401.06104): the tokens that the newest query looks at most, the same ones in all heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sinklora.cache.observation_window import window_attention
from sinklora.cache.policies import CachePolicy, Split, budget_in_tokens
from sinklora.cache.scores import NewToken, NewTokens, Scorer


@dataclass(frozen=True)
class TOVA(CachePolicy):
    """The newest token, and those that it looks at most (TOVA, arXiv 2401.06104, section 3.2).

    All heads of a layer keep the same tokens: see `TOVAScores`. There is no window, and no first tokens are
    protected. The newest token stays whatever it receives, as in kvpress. Raises ValueError naming the
    argument.
    """

    name: ClassVar[str] = "tova"
    paper: ClassVar[str] = "arXiv 2401.06104"

    def split(self, prompt_tokens: int) -> Split:
        return Split(0, budget_in_tokens(self.budget, prompt_tokens) - 1, 1)

    def make_scorer(self, empty: Tensor) -> Scorer:
        return TOVAScores(empty)


class TOVAScores:
    """The attention that a token receives from the newest query, the mean over all heads of the layer.

    In float32. At the end of a chunk (a prompt, a further turn, a piece of either) that is its last query,
    then each decoded one; what earlier queries gave does not count.
    """

    needs_sums: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = True
    needs_values: ClassVar[bool] = False

    def __init__(self, empty: Tensor) -> None:
        self.state = {"scores": empty}

    def query_weights(self, new: NewTokens) -> Tensor | None:
        """No sums are needed."""
        return None

    def extend(self, new: NewTokens, sums: Tensor | None) -> None:
        """Take in a chunk; in a row without new tokens nothing is evicted before the next one scores anew."""
        received = window_attention(new, [min(count, 1) for count in new.counts])
        self.state = {"scores": received.mean(1, keepdim=True).expand_as(received)}

    def step(self, columns: dict[str, Tensor], new: NewToken) -> None:
        """The attention of one query a row, in place of what was before."""
        assert new.weights is not None
        scores = columns["scores"][..., : new.weights.shape[-1]]
        scores.copy_(new.weights.mean((-3, -2)).unsqueeze(-2))

    def rank(self, scores: Tensor, positions: Tensor, seen: Any) -> Tensor:
        """The lowest is evicted first."""
        return scores
