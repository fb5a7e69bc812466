"""What the last queries of a prompt look at: the observation window of SnapKV (arXiv 2404.14469)."""

from __future__ import annotations

import torch
from torch import Tensor

from sinklora.cache.scored_attention import attention_rows
from sinklora.cache.scores import NewTokens
from sinklora.cache.slots import like


def window_attention(new: NewTokens, windows: list[int]) -> Tensor:
    """What each token [B, Hkv, L] receives from the last queries of a chunk, `windows` of each row.

    The mean over these queries and the query heads of the group; 0 in a row without any.
    """
    last = max(windows)
    # Counted from the end of each row; below its window where that is shorter. [B, last]
    chosen = new.rows(new.counts) - last + torch.arange(last, device=new.query.device)
    counted = chosen >= new.rows(new.counts) - new.rows(windows)
    chosen = chosen.clamp(min=0)
    picked = new.query.gather(2, like(chosen[:, None, :, None], new.query[:, :, :last]))
    reach = (new.rows(new.before) + chosen)[:, None, :, None]
    seen = (new.positions[:, :, None] >= 0) & (new.positions[:, :, None] <= reach)
    weights = attention_rows(picked, new.keys, new.scale, seen & counted[:, None, :, None])
    groups = new.query.shape[1] // new.keys.shape[1]
    return weights.sum(2) / (groups * new.rows(windows).clamp(min=1)[..., None])
