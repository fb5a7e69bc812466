"""Expected Attention (arXiv 2510.00636): what queries to come will look at, if they are like those so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sinklora.cache.checks import check_sharing, check_sinks
from sinklora.cache.policies import CachePolicy, Sharing, Split, budget_in_tokens, in_tokens, split_with_sinks
from sinklora.cache.prompt_scores import PromptScores
from sinklora.cache.rotation import Rotation
from sinklora.cache.scored_attention import precise
from sinklora.cache.scores import NewTokens, Scorer
from sinklora.ranges import check_count, check_fraction, check_weight


@dataclass(frozen=True)
class ExpectedAttention(CachePolicy):
    """The first tokens, the newest, and those that queries to come should look at most (arXiv 2510.00636).

    The queries of a prompt, taken for draws from a normal distribution, stand for those of the next `future`
    positions: see `ExpectedAttentionScores`. Neither the queries nor the keys of the first `sink_tokens`
    enter; these tokens always stay, and where the budget is too small for them, as many as leave a place for
    the newest. `epsilon` is added to the expected attention before it meets the value's length: 0 leaves the
    paper's product, more lets long values count by themselves (kvpress takes 0.01 where heads share slots).
    `future`, `sink_tokens` and `epsilon` are the defaults of kvpress.
    The paper's prompt keeps the highest scores alone. To stay within the budget, decoding evicts too:
    `recent_share` of the budget, at least one token, is for the newest, and a decoded token that leaves them
    is evicted first. A further turn is scored anew with its own queries, if there are two or more of them
    (few make a poor covariance, but they say best what is asked now); a shorter one is as if decoded, and so
    is a prompt with fewer than two tokens after the first `sink_tokens`.
    `share`, `own_share`: as in `SnapKV`. For models with rotary position embeddings. Raises ValueError naming
    the argument.
    """

    name: ClassVar[str] = "expected_attention"
    paper: ClassVar[str] = "arXiv 2510.00636"
    moves_queries: ClassVar[bool] = True

    recent_share: float = 0.1
    sink_tokens: int = 4
    future: int = 512
    epsilon: float = 0.0
    share: str = "head"
    own_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("recent_share", self.recent_share, "the budget")
        check_sinks(self.sink_tokens, self.budget)
        check_count("future", self.future, least=1)
        check_weight("epsilon", self.epsilon)
        check_sharing(self.share, self.own_share)

    def split(self, prompt_tokens: int) -> Split:
        total = budget_in_tokens(self.budget, prompt_tokens)
        recent = max(1, in_tokens(float(self.recent_share), total))
        return split_with_sinks(self.sink_tokens, total - recent, recent)

    @property
    def sharing(self) -> Sharing:
        return Sharing(self.share, self.own_share)

    def make_scorer(self, empty: Tensor) -> Scorer:
        return ExpectedAttentionScores(self, empty)


class ExpectedAttentionScores(PromptScores):
    """Softmax over keys k of k . m s + k^T C k s^2 / 2, on average over the group, times the value's length.

    `epsilon` is added to the average. m [D] and C [D, D] are mean and covariance of the chunk's queries, by
    query head, moved by R, the mean rotation over the next positions; s scales logits. That is the logarithm
    of the expected exp(q . k s) (section 3). All queries are put at the position behind the chunk first, so
    that R is the same for all lengths. In float32, N x D + D x D numbers a head.
    """

    def __init__(self, policy: ExpectedAttention, empty: Tensor) -> None:
        super().__init__(empty)
        self.policy = policy

    def scores_row(self, before: int, count: int) -> bool:
        """Whether there are two queries besides those of the first tokens."""
        return count - max(0, self.policy.sink_tokens - before) >= 2

    def scored(self, new: NewTokens) -> Tensor:
        """Scores [B, Hkv, L] after a chunk."""
        assert new.rotation is not None
        keys = new.keys.to(precise(new.keys.dtype))
        counted, ahead = self._queries(new)
        turn = mean_rotation(new.rotation, self.policy.future, keys)
        excluded = new.positions < self.policy.sink_tokens  # free slots and padding, too
        expected = torch.zeros_like(keys[..., 0])
        grouped = new.query.unflatten(1, (keys.shape[1], -1)).unbind(2)
        for query in grouped:
            # Of one query head for each key/value head at a time: copies in float32 are large.
            moved = new.rotation.turned(query.to(keys.dtype), ahead, query.shape[2] + 1)
            mean, covariance = moments(moved @ turn, counted)
            logits = (keys @ mean[..., None]).squeeze(-1) * new.scale
            logits += ((keys @ covariance) * keys).sum(-1) * (new.scale**2 / 2)
            expected += logits.masked_fill_(excluded, float("-inf")).softmax(-1)
        lengths = torch.linalg.vector_norm(new.values, dim=-1, dtype=keys.dtype)
        return (expected / len(grouped) + self.policy.epsilon) * lengths

    def _queries(self, new: NewTokens) -> tuple[Tensor, Tensor]:
        """Which queries count [B, 1, Q, 1], and how far each is from the position behind [B, 1, Q]."""
        index = torch.arange(new.query.shape[2], device=new.query.device)
        ahead = new.rows(new.counts) - index
        counted = (ahead > 0) & (new.rows(new.before) + index >= self.policy.sink_tokens)
        return counted[:, None, :, None], ahead.clamp(min=0)[:, None]


def moments(queries: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [B, H, D] and covariance [B, H, D, D] of queries [B, H, N, D], of `counted` [B, 1, N, 1] ones."""
    number = counted.sum(2, keepdim=True).clamp(min=1)
    mean = queries.masked_fill(~counted, 0.0).sum(2, keepdim=True) / number
    apart = (queries - mean).masked_fill_(~counted, 0.0)
    return mean.squeeze(2), apart.mT @ apart / number


def mean_rotation(rotation: Rotation, positions: int, like: Tensor) -> Tensor:
    """The mean of rotations by 0, 1, ..., `positions` - 1, as a matrix [D, D] for vectors that are rows.

    The sum over twice as many is the sum, and the sum turned further: some ten turns of D rows.
    """
    size = like.shape[-1]
    none = torch.eye(size, dtype=like.dtype, device=like.device)

    def further(rows: Tensor, by: int) -> Tensor:
        places = torch.full((1, 1, size), by, device=like.device)
        return rotation.turned(rows[None, None], places, by + 1)[0, 0]

    total, number = none, 1
    for digit in f"{positions:b}"[1:]:
        total, number = total + further(total, number), 2 * number
        if digit == "1":
            total, number = none + further(total, 1), number + 1
    return total / positions
