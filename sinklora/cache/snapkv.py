"""SnapKV (arXiv 2404.14469): what the last queries of a prompt look at, and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.checks import check_sharing
from sinklora.cache.observation_window import window_attention
from sinklora.cache.policies import CachePolicy, Sharing, Split, budget_in_tokens
from sinklora.cache.prompt_scores import PromptScores
from sinklora.cache.scores import NewTokens, Scorer
from sinklora.ranges import check_count


@dataclass(frozen=True)
class SnapKV(CachePolicy):
    """The newest tokens, and those that a prompt's last queries look at most (SnapKV, arXiv 2404.14469).

    The last `window` tokens of a prompt always stay, and their queries choose the others, per layer and
    key/value head: see `SnapKVScores`. `window` and `pool`, the neighbours over which scores are averaged
    (odd), are the defaults of the release's class; its model patches take a window of 32 where nothing is
    set. The release chooses for each query head; here the heads of a group choose together, by their mean.
    Where half of the budget is less than `window`, the window is that half (rounded down, at least one
    token), so that all of it stays.
    SnapKV evicts at a prompt's end alone. To stay within the budget, decoding evicts too: the window moves on
    to decoded tokens, and what leaves it is evicted first. Each further turn is scored anew.
    `share`: "head", each head has its budget; "layer", the heads of a layer share the slots of theirs
    (Ada-SnapKV, arXiv 2407.11550), but for `own_share` of the heavy hitters, which each head has for its own
    best; "model", so over all layers. Raises ValueError naming the argument.
    """

    name: ClassVar[str] = "snapkv"
    paper: ClassVar[str] = "arXiv 2404.14469"

    window: int = 64
    pool: int = 5
    share: str = "head"
    own_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("window", self.window, least=1)
        check_count("pool", self.pool, least=1)
        if self.pool % 2 == 0:
            raise ValueError(f"pool={self.pool}: expected an odd number of neighbours; 1 averages over none")
        check_sharing(self.share, self.own_share)

    def split(self, prompt_tokens: int) -> Split:
        total = budget_in_tokens(self.budget, prompt_tokens)
        recent = min(self.window, max(1, total // 2))
        return Split(0, total - recent, recent)

    @property
    def sharing(self) -> Sharing:
        return Sharing(self.share, self.own_share)

    def make_scorer(self, empty: Tensor) -> Scorer:
        return SnapKVScores(self, empty)


class SnapKVScores(PromptScores):
    """The attention that a token receives from the window's queries, pooled along the text, in float32.

    The mean over the queries of the window and the query heads of the group, then over `pool` neighbours
    among the kept tokens before the window; beyond either end neighbours have 0. The window is as long as the
    policy says for the tokens so far, and at most as long as the chunk. Its own tokens have 0.
    """

    def __init__(self, policy: SnapKV, empty: Tensor) -> None:
        super().__init__(empty)
        self.policy = policy

    def scored(self, new: NewTokens) -> Tensor:
        """Scores [B, Hkv, L] after a chunk."""
        counts = list(zip(new.before, new.counts, strict=True))
        windows = [min(self.policy.split(before + count).recent, count) for before, count in counts]
        received = window_attention(new, windows)
        pairs = zip(counts, windows, strict=True)
        begins = new.rows([before + count - window for (before, count), window in pairs])[..., None]
        outside = (new.positions < 0) | (new.positions >= begins)
        received.masked_fill_(outside, 0.0)
        pooled = neighbour_means(received, None if new.complete else new.positions, self.policy.pool)
        return pooled.masked_fill_(outside, 0.0)


def neighbour_means(x: Tensor, positions: Tensor | None, width: int) -> Tensor:
    """Means [B, Hkv, L] over so many neighbours in the order of `positions`, of which those below 0 are last.

    None: x is in that order. Beyond both ends there are zeros.
    """
    if positions is None:
        return F.avg_pool1d(x, width, stride=1, padding=width // 2)
    order = positions.masked_fill(positions < 0, torch.iinfo(positions.dtype).max).argsort(-1)
    means = F.avg_pool1d(x.gather(-1, order), width, stride=1, padding=width // 2)
    return torch.empty_like(x).scatter_(-1, order, means)
