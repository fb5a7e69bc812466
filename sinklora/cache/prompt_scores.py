"""Scores that a prompt gives to its tokens once, at its end; decoded tokens change none and have none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.scores import NewToken, NewTokens


class PromptScores(ABC):
    """A scorer of methods that evict at a prompt's end alone.

    A chunk of several tokens (a prompt, a further turn, a piece of either) scores all that is stored and the
    chunk itself, in place of the scores from before. A single token, decoded or alone in its chunk, changes
    no score and has 0, the lowest: it stays while it is among the newest ones, and then leaves before all
    that a prompt has scored, the oldest of such tokens first.
    """

    needs_sums: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False

    def __init__(self, empty: Tensor) -> None:
        self.state = {"scores": empty}

    @abstractmethod
    def scored(self, new: NewTokens) -> Tensor:
        """Scores [B, Hkv, L] after a chunk, 0 or more; anything in rows that it does not score."""

    def scores_row(self, before: int, count: int) -> bool:
        """Whether so many new tokens of a row, after so many others, give scores."""
        return count > 1

    def query_weights(self, new: NewTokens) -> Tensor | None:
        """No sums are needed."""
        return None

    def extend(self, new: NewTokens, sums: Tensor | None) -> None:
        """Take in a chunk."""
        scores = F.pad(self.state["scores"][..., : new.used], (0, new.query.shape[2]))
        rows = [self.scores_row(*counts) for counts in zip(new.before, new.counts, strict=True)]
        if any(rows):
            scores = torch.where(new.rows(rows)[..., None], self.scored(new), scores)
        self.state = {"scores": scores}

    def step(self, columns: dict[str, Tensor], new: NewToken) -> None:
        """The new token has 0 already."""
        return

    def rank(self, scores: Tensor, positions: Tensor, seen: Any) -> Tensor:
        """The lowest is evicted first."""
        return scores
