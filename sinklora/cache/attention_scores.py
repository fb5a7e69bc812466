"""Scores from attention: what a token receives from queries, summed as in H2O (arXiv 2306.14048)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.scored_attention import attention_rows
from sinklora.cache.scores import NewToken, NewTokens
from sinklora.cache.slots import like
from sinklora.ranges import check_count, check_decay, plain_fields


@dataclass(frozen=True)
class Score:
    """How the attention that a token receives becomes its score, per layer and key/value head, in float32.

    The plain sum over all queries is H2O's. `decay` < 1 multiplies what was before with every query,
    `window` counts the last queries only, `average` divides the sum by the number of queries that could
    see the token. Raises ValueError naming the argument.
    """

    decay: float = 1.0
    window: int = 0
    average: bool = False

    def __post_init__(self) -> None:
        plain_fields(self)
        check_decay(self.decay)
        check_count("window", self.window)
        if (self.decay < 1) + (self.window > 0) + self.average > 1:
            raise ValueError(f"{self}: give one of decay, window and average")


SUMMED = Score()


def decayed_weights(new: NewTokens, decay: float) -> Tensor | None:
    """How much each query [B, Q] counts at the end of its chunk, padding nothing; None: all count 1."""
    queries = new.query.shape[2]
    if decay == 1 and min(new.counts) == queries:
        return None
    age = new.rows(new.counts) - 1 - torch.arange(queries, device=new.query.device)
    return torch.where(age >= 0, decay ** age.clamp(min=0).float(), 0.0)


def add_decayed(sums: Tensor, stored: Tensor, new: NewTokens, decay: float) -> Tensor:
    """Weighted sums [B, Hkv, L] of a chunk, with what its stored tokens had before, faded; in place."""
    faded = new.rows([decay**count for count in new.counts])[..., None].to(sums.dtype)
    sums[..., : new.used] += stored[..., : new.used] * faded
    return sums


class AttentionScores:
    """Attention received: summed (H2O), decayed, or averaged over the queries that could see the token."""

    needs_sums: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True
    needs_values: ClassVar[bool] = False

    def __init__(self, rule: Score, empty: Tensor) -> None:
        self.rule = rule
        self.state = {"scores": empty}

    def query_weights(self, new: NewTokens) -> Tensor | None:
        """How much each query [B, Q] counts at the end of its chunk; padding counts nothing."""
        return decayed_weights(new, self.rule.decay)

    def extend(self, new: NewTokens, sums: Tensor | None) -> None:
        """Take in a chunk; `sums` [B, Hkv, L]: the weighted column sums of its attention."""
        assert sums is not None
        self.state["scores"] = add_decayed(sums, self.state["scores"], new, self.rule.decay)

    def step(self, columns: dict[str, Tensor], new: NewToken) -> None:
        """Account for one query a row: what was before fades, its attention is added."""
        assert new.weights is not None
        scores = columns["scores"][..., : new.weights.shape[-1]]
        if self.rule.decay < 1:
            scores.mul_(self.rule.decay)
        scores.add_(new.weights.sum(-2))

    def rank(self, scores: Tensor, positions: Tensor, seen: Any) -> Tensor:
        """What decides between tokens when so many have been `seen`; the lowest is evicted first."""
        return scores / (seen - positions).clamp(min=1) if self.rule.average else scores


class WindowScores(AttentionScores):
    """Attention received from the last queries alone: query t is in row t % window of the history."""

    needs_sums = False

    def __init__(self, rule: Score, empty: Tensor) -> None:
        super().__init__(rule, empty)
        self.state["history"] = empty.unsqueeze(2).repeat(1, 1, rule.window, 1)

    def extend(self, new: NewTokens, sums: Tensor | None) -> None:
        """Take in a chunk."""
        window, width = self.rule.window, new.query.shape[2]
        history = F.pad(self.state["history"][..., : new.used], (0, width))
        last = min(window, width)
        # Below 0 where a row has fewer new tokens. [B, last]
        chosen = new.rows(new.counts) - last + torch.arange(last, device=new.query.device)
        real, rows, before = chosen >= 0, chosen.clamp(min=0), new.rows(new.before)
        picked = new.query.gather(2, like(rows[:, None, :, None], new.query[:, :, :last]))
        reach = (before + rows)[:, None, :, None]
        valid = (new.positions[:, :, None] >= 0) & (new.positions[:, :, None] <= reach)
        weights = attention_rows(picked, new.keys, new.scale, valid)
        # Counted on below 0, a missing query has the row of an older one: no two share a row.
        place = like(((before + chosen) % window)[:, None, :, None], weights)
        old = history.gather(2, place)
        history.scatter_(2, place, torch.where(real[:, None, :, None], weights, old))
        self.state = {"scores": history.sum(2), "history": history}

    def step(self, columns: dict[str, Tensor], new: NewToken) -> None:
        """Account for one query a row in place of the one that leaves the window."""
        assert new.weights is not None
        past = columns["history"][..., : new.weights.shape[-1]]
        turn, received = new.seen % self.rule.window, new.weights.sum(-2, keepdim=True)
        if isinstance(turn, int):
            past[..., turn : turn + 1, :] = received
        else:
            past.scatter_(-2, turn.long()[..., None].expand_as(received), received)
        columns["scores"][..., : past.shape[-1]] = past.sum(-2)
