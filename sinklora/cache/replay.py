"""Replay, ours: of the older tokens those stay that the prompt, read once more, would look at most.

KVzip (arXiv 2505.23416) has the model repeat its context and keeps what it looks at while it does so; here
nothing is read twice, the queries of the prompt themselves are moved behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sinklora.cache.attention_scores import add_decayed, decayed_weights
from sinklora.cache.checks import check_sharing, check_sinks
from sinklora.cache.column_maxima import replay_maxima
from sinklora.cache.policies import CachePolicy, Sharing, Split, budget_in_tokens, in_tokens, split_with_sinks
from sinklora.cache.scores import NewToken, NewTokens, Scorer
from sinklora.cache.slots import write_slot
from sinklora.ranges import check_decay, check_fraction, check_weight


@dataclass(frozen=True)
class Replay(CachePolicy):
    """The first tokens, the newest ones, and of the others those that a replayed prompt would look at most.

    Ours, not the paper's. At the end of a prompt all of its queries are moved to the position behind it, by
    rotary position embeddings, and see all of its keys: induction heads then point at what follows a
    repeated context, as they would in a second reading. A token's score is the most that any of these
    queries looks at it, times the length of its value, which is how much of it such a look would bring; plus
    `attention_weight` times the attention it received from queries in their own place, which fades by `decay`
    with every query, on average over the query heads of its group (`ReplayScores`, which says what further
    turns and decoded tokens add). That weight is in units of a value's length, chosen for SmolLM2-135M.

    Every layer and key/value head keeps the first `sink_tokens`, which are never evicted, `recent_share` of
    the budget for the newest, and the highest scores. Where the budget is too small for the sink tokens,
    recent ones give way, up to the last one.
    `share`: with "model", the heads of all layers together have as many slots as so many budgets, and the
    highest scores of any of them get those, but for `own_share` of the heavy hitters, which each head has for
    its own best; "layer": so within each layer; "head": each has its budget. A prompt or a turn is shared
    anew, in decoding each head keeps its number. Layers that share evict when the last one has read the
    prompt: until then the cache holds all of it.
    For models with rotary position embeddings. Raises ValueError naming the argument.
    """

    name: ClassVar[str] = "replay"
    moves_queries: ClassVar[bool] = True

    recent_share: float = 0.25
    sink_tokens: int = 4
    decay: float = 0.97
    attention_weight: float = 5.0
    share: str = "model"
    own_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("recent_share", self.recent_share, "the budget")
        check_weight("attention_weight", self.attention_weight)
        check_decay(self.decay)
        check_sharing(self.share, self.own_share)
        check_sinks(self.sink_tokens, self.budget)

    def split(self, prompt_tokens: int) -> Split:
        total = budget_in_tokens(self.budget, prompt_tokens)
        recent = in_tokens(float(self.recent_share), total)
        return split_with_sinks(self.sink_tokens, total - recent, recent)

    @property
    def sharing(self) -> Sharing:
        return Sharing(self.share, self.own_share)

    def make_scorer(self, empty: Tensor) -> Scorer:
        return ReplayScores(self.decay, self.attention_weight, empty)


class ReplayScores:
    """Score = replayed * length of the value + weight * attention / groups, per key/value head, in float32.

    `replayed` is the most that a query has looked at a token; it does not fade. A chunk's queries (a prompt,
    a further turn, a piece of either) are moved to the position behind the newest token and look at all that
    is stored then and at the chunk itself, their own tokens included, in one softmax. What earlier queries
    saw stays, if it is more. A single new token, decoded or alone in its chunk, looks from its own place, and
    at its own token it does not count.
    `attention` is what queries in their own place gave it, summed over the group, each query `decay` times
    as much as the next.
    Positions are those of the row without padding, inside the cache where the cache counts so.
    """

    needs_sums: ClassVar[bool] = True
    needs_weights: ClassVar[bool] = True
    needs_values: ClassVar[bool] = True

    def __init__(self, decay: float, weight: float, empty: Tensor) -> None:
        self.decay, self.weight = decay, weight
        self.state = {name: empty.clone() for name in ("scores", "replayed", "attention", "lengths")}

    def query_weights(self, new: NewTokens) -> Tensor | None:
        """How much each query [B, Q] counts at the end of its chunk; padding counts nothing."""
        return decayed_weights(new, self.decay)

    def extend(self, new: NewTokens, sums: Tensor | None) -> None:
        """Take in a chunk; `sums` [B, Hkv, L]: the weighted column sums of its attention."""
        assert sums is not None
        attention = add_decayed(sums, self.state["attention"], new, self.decay)
        replayed = replay_maxima(
            self._moved(new),
            new.keys,
            new.scale,
            counts=None if min(new.counts) == new.query.shape[2] else new.counts,
            valid=None if new.complete else new.positions >= 0,
        )
        alone = new.rows([count == 1 for count in new.counts])
        replayed[..., new.used].masked_fill_(alone, 0.0)
        before = replayed[..., : new.used]
        torch.maximum(before, self.state["replayed"][..., : new.used], out=before)
        lengths = torch.linalg.vector_norm(new.values, dim=-1, dtype=replayed.dtype)
        groups = new.query.shape[1] // new.keys.shape[1]
        scores = torch.addcmul(attention * (self.weight / groups), replayed, lengths)
        self.state = {"scores": scores, "replayed": replayed, "attention": attention, "lengths": lengths}

    def _moved(self, new: NewTokens) -> Tensor:
        """The queries of a chunk at the position behind its newest token; that of a single one stays."""
        assert new.rotation is not None
        width = new.query.shape[2]
        ahead = new.rows(new.counts) - torch.arange(width, device=new.query.device)
        ahead = torch.where(new.rows(new.counts) > 1, ahead.clamp(min=0), 0)
        return new.rotation.turned(new.query, ahead[:, None], width + 1)

    def step(self, columns: dict[str, Tensor], new: NewToken) -> None:
        """Account for one query a row: attention fades and is added, the most it looks at a token counts."""
        assert new.weights is not None and new.value is not None
        length = torch.linalg.vector_norm(new.value, dim=-1, dtype=new.weights.dtype)
        write_slot(columns["lengths"], new.slot, length, -1)
        groups, used = new.weights.shape[-2:]
        scores, replayed, attention, lengths = (
            columns[name][..., :used] for name in ("scores", "replayed", "attention", "lengths")
        )
        torch.add(new.weights.sum(-2), attention, alpha=self.decay, out=attention)
        most = new.weights.amax(-2)
        write_slot(most, new.slot, 0, -1)  # of itself
        torch.maximum(replayed, most, out=replayed)
        torch.mul(attention, self.weight / groups, out=scores).addcmul_(replayed, lengths)

    def rank(self, scores: Tensor, positions: Tensor, seen: Any) -> Tensor:
        """The lowest is evicted first."""
        return scores
