"""How a layer of a bounded cache scores its tokens: by the attention they receive, or by their novelty.

Each class keeps tensors whose last dimension is slots; the layer moves their columns with keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.policies import Score, ValueNovelty
from sinklora.cache.scored_attention import attention_rows, blocks, precise
from sinklora.cache.slots import like


@dataclass(frozen=True)
class NewTokens:
    """A chunk of Q new tokens after `used` stored ones: L in all.

    `query` [B, H, Q, D]; `keys`, `values` [B, Hkv, L, D]; `positions` [B, Hkv, L], below 0 where there is no
    token. `counts`, `before`: new and earlier tokens, row by row.
    """

    query: Tensor
    keys: Tensor
    values: Tensor
    positions: Tensor
    used: int
    counts: list[int]
    before: list[int]
    scale: float

    def rows(self, values: list[Any]) -> Tensor:
        """A number a row, [B, 1]."""
        return torch.tensor(values, device=self.query.device)[:, None]


class AttentionScores:
    """Attention received: summed (H2O), decayed, or averaged over the queries that could see the token."""

    needs_sums: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True

    def __init__(self, rule: Score, empty: Tensor) -> None:
        self.rule = rule
        self.state = {"scores": empty}

    def query_weights(self, new: NewTokens) -> Tensor | None:
        """How much each query [B, Q] counts at the end of its chunk; padding counts nothing."""
        queries = new.query.shape[2]
        if self.rule.decay == 1 and min(new.counts) == queries:
            return None
        age = new.rows(new.counts) - 1 - torch.arange(queries, device=new.query.device)
        return torch.where(age >= 0, self.rule.decay ** age.clamp(min=0).float(), 0.0)

    def extend(self, new: NewTokens, sums: Tensor | None) -> None:
        """Take in a chunk; `sums` [B, Hkv, L]: the weighted column sums of its attention."""
        assert sums is not None
        faded = new.rows([self.rule.decay**count for count in new.counts])[..., None].to(sums.dtype)
        sums[..., : new.used] += self.state["scores"][..., : new.used] * faded
        self.state["scores"] = sums

    def step(self, received: Tensor | None, values: Tensor, value: Tensor, seen: list[int]) -> None:
        """Account for one query a row; `received` [B, Hkv, used]: its attention, grouped heads summed."""
        assert received is not None
        mine = self.state["scores"][..., : received.shape[-1]]
        if self.rule.decay < 1:
            mine.mul_(self.rule.decay)
        mine.add_(received)

    def fresh(self, own: Tensor | None, value: Tensor, seen: list[int]) -> dict[str, Tensor]:
        """The columns of a token that enters; `own` [B, Hkv, 1]: the attention to itself."""
        assert own is not None
        return {"scores": own}

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

    def step(self, received: Tensor | None, values: Tensor, value: Tensor, seen: list[int]) -> None:
        """Account for one query a row in place of the one that leaves the window."""
        assert received is not None
        past = self.state["history"][..., : received.shape[-1]]
        past.scatter_(2, self._turn(seen, past[:, :, :1]), received[:, :, None])
        self.state["scores"][..., : received.shape[-1]] = past.sum(2)

    def fresh(self, own: Tensor | None, value: Tensor, seen: list[int]) -> dict[str, Tensor]:
        """The columns of a token that enters."""
        assert own is not None
        column = own.new_zeros(*own.shape[:2], self.rule.window, 1)
        column.scatter_(2, self._turn(seen, column[:, :, :1]), own[:, :, None])
        return {"scores": own, "history": column}

    def _turn(self, seen: list[int], x: Tensor) -> Tensor:
        turn = torch.tensor([n % self.rule.window for n in seen], device=x.device)
        return like(turn[:, None, None, None], x)


class NoveltyScores:
    """1 - cos(value, the most similar value of a newer token); a token with none newer has 2, the most."""

    needs_sums: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False

    def __init__(self, empty: Tensor) -> None:
        self.state = {"scores": empty, "norms": empty.clone()}

    def query_weights(self, new: NewTokens) -> Tensor | None:
        """No attention enters."""
        return None

    def extend(self, new: NewTokens, sums: Tensor | None) -> None:
        """Compare every token with the newer ones of a chunk, a block of them at a time."""
        width = new.query.shape[2]
        lengths = norms(new.values)
        scores = F.pad(self.state["scores"][..., : new.used], (0, width), value=2.0)
        values = new.values.contiguous()  # every block would copy all of a view
        index = torch.arange(width, device=scores.device)
        for row, heads, begin, end in blocks(values, width):
            end = min(end, new.counts[row])
            if begin >= end:
                continue
            upto = new.used + end  # no token after the block is older than one in it
            newer = values[row, heads, new.used + begin : upto]
            newer = newer / lengths[row, heads, new.used + begin : upto, None].to(newer.dtype)
            similar = (values[row, heads, :upto] @ newer.mT).to(lengths.dtype)
            similar /= lengths[row, heads, :upto, None]
            same_or_later = index[:end, None] >= index[begin:end]
            similar[:, new.used :].masked_fill_(same_or_later, -1.0)
            mine = scores[row, heads, :upto]
            torch.minimum(mine, distance(similar.amax(-1), values.dtype), out=mine)
        self.state = {"scores": scores, "norms": lengths}

    def step(self, received: Tensor | None, values: Tensor, value: Tensor, seen: list[int]) -> None:
        """Compare the stored values [B, Hkv, used, D] with a new one [B, Hkv, 1, D]."""
        used = values.shape[2]
        dots = (value @ values.mT)[:, :, 0].to(self.state["norms"].dtype)
        similar = dots / (self.state["norms"][..., :used] * norms(value))
        mine = self.state["scores"][..., :used]
        torch.minimum(mine, distance(similar, values.dtype), out=mine)

    def fresh(self, own: Tensor | None, value: Tensor, seen: list[int]) -> dict[str, Tensor]:
        """The columns of a token that enters."""
        norm = norms(value)
        return {"scores": torch.full_like(norm, 2.0), "norms": norm}

    def rank(self, scores: Tensor, positions: Tensor, seen: Any) -> Tensor:
        """The lowest is evicted first."""
        return scores


TokenScores = AttentionScores | NoveltyScores


def make_scores(rule: Score | ValueNovelty | None, empty: Tensor) -> TokenScores | None:
    """The scores that a policy's rule asks for, without tokens; `empty` is [B, Hkv, 0]."""
    if rule is None:
        return None
    if isinstance(rule, ValueNovelty):
        return NoveltyScores(empty)
    return WindowScores(rule, empty) if rule.window else AttentionScores(rule, empty)


def distance(cosine: Tensor, dtype: torch.dtype) -> Tensor:
    """1 - cosine, 0 where only the rounding of the values' dtype tells them apart."""
    far = 1 - cosine
    return far.masked_fill_(far < 8 * torch.finfo(dtype).eps, 0.0)


def norms(values: Tensor) -> Tensor:
    """Lengths of value vectors, [B, Hkv, L, D] -> [B, Hkv, L], never 0."""
    return values.to(precise(values.dtype)).norm(dim=-1).clamp(min=1e-12)
