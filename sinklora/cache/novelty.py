"""Novelty, ours: of the older tokens those stay whose value no newer token repeats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.checks import check_sinks
from sinklora.cache.policies import CachePolicy, Split, budget_in_tokens, in_tokens, split_with_sinks
from sinklora.cache.scored_attention import blocks, precise
from sinklora.cache.scores import NewToken, NewTokens, Scorer
from sinklora.cache.slots import write_slot
from sinklora.ranges import check_count


@dataclass(frozen=True)
class Novelty(CachePolicy):
    """The newest tokens, and of the older ones those whose value no newer token repeats.

    Ours, not the paper's: `share` of the budget goes to tokens chosen by `NoveltyScores`, per layer and
    key/value head, as far as it leaves `always_recent` newest ones; `sink_tokens` as in H2O. R-KV
    (arXiv 2505.24133) scores by the similarity of keys together with attention; here the values alone
    decide, so the prompt needs no attention weights.
    """

    name: ClassVar[str] = "novelty"
    stored_names: ClassVar[Mapping[str, str]] = MappingProxyType({"sink_tokens": "protect"})

    share: float = 0.25
    always_recent: int = 32
    sink_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.share, bool) or not isinstance(self.share, float) or not 0 < self.share < 1:
            raise ValueError(f"share={self.share!r}: expected a fraction of the budget between 0 and 1")
        check_count("always_recent", self.always_recent)
        check_sinks(self.sink_tokens, self.budget)

    def split(self, prompt_tokens: int) -> Split:
        total = budget_in_tokens(self.budget, prompt_tokens)
        heavy = max(0, min(in_tokens(self.share, total), total - max(self.always_recent, 1)))
        return split_with_sinks(self.sink_tokens, heavy, total - heavy)

    def make_scorer(self, empty: Tensor) -> Scorer:
        return NoveltyScores(empty)


class NoveltyScores:
    """1 - cos(value, the most similar value of a newer token); a token with none newer has 2, the most.

    Of repetitions the newest scores highest. What is below eight roundings of the values' dtype is 0: equal
    values are equal, however they were multiplied.
    """

    needs_sums: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False
    needs_values: ClassVar[bool] = True

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
            stop = new.used + end  # no token after the block is older than one in it
            newer = values[row, heads, new.used + begin : stop]
            newer = newer / lengths[row, heads, new.used + begin : stop, None].to(newer.dtype)
            similar = (values[row, heads, :stop] @ newer.mT).to(lengths.dtype)
            similar /= lengths[row, heads, :stop, None]
            same_or_later = index[:end, None] >= index[begin:end]
            similar[:, new.used :].masked_fill_(same_or_later, -1.0)
            nearest = scores[row, heads, :stop]
            torch.minimum(nearest, distance(similar.amax(-1), values.dtype), out=nearest)
        self.state = {"scores": scores, "norms": lengths}

    def step(self, columns: dict[str, Tensor], new: NewToken) -> None:
        """Compare the stored values with the new one."""
        assert new.values is not None and new.value is not None
        used, length = new.values.shape[2], norms(new.value)
        write_slot(columns["norms"], new.slot, length, -1)
        dots = (new.value @ new.values.mT)[:, :, 0].to(length.dtype)
        similar = dots / (columns["norms"][..., :used].clamp(min=1e-12) * length)  # 0 in free slots
        nearest = columns["scores"][..., :used]
        torch.minimum(nearest, distance(similar, new.values.dtype), out=nearest)
        write_slot(columns["scores"], new.slot, torch.full_like(length, 2.0), -1)

    def rank(self, scores: Tensor, positions: Tensor, seen: Any) -> Tensor:
        """The lowest is evicted first."""
        return scores


def distance(cosine: Tensor, dtype: torch.dtype) -> Tensor:
    """1 - cosine, 0 where only the rounding of the values' dtype tells them apart."""
    far = 1 - cosine
    return far.masked_fill_(far < 8 * torch.finfo(dtype).eps, 0.0)


def norms(values: Tensor) -> Tensor:
    """Lengths of value vectors, [B, Hkv, L, D] -> [B, Hkv, L], never 0."""
    return values.to(precise(values.dtype)).norm(dim=-1).clamp(min=1e-12)
