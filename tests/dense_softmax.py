"""Column sums of causal attention, and column maxima without a mask, by the whole matrix of scores."""

import torch


def dense_sums(
    query: torch.Tensor, key: torch.Tensor, scale: float, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums [B, Hkv, L] and log-sum-exp [B, H, Q] in float64; the first L - Q keys are seen by all queries."""
    groups = query.shape[1] // key.shape[1]
    scores = query.double() @ key.double().repeat_interleave(groups, 1).mT * scale
    queries, length = scores.shape[2:]
    future = torch.ones(queries, length, dtype=torch.bool).triu(length - queries + 1)
    scores = scores.masked_fill(future, float("-inf"))
    share = scores.softmax(-1)
    if weights is not None:
        share = share * weights.double()[:, None, :, None]
    return share.sum(2).unflatten(1, (key.shape[1], groups)).sum(2), scores.logsumexp(-1)


def dense_maxima(
    query: torch.Tensor, key: torch.Tensor, scale: float, valid: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maxima [B, Hkv, L] over queries and grouped heads, and log-sum-exp [B, H, Q], in float64."""
    groups = query.shape[1] // key.shape[1]
    scores = query.double() @ key.double().repeat_interleave(groups, 1).mT * scale
    if valid is not None:
        scores = scores.masked_fill(~valid.repeat_interleave(groups, 1)[:, :, None], float("-inf"))
    share = scores.softmax(-1).amax(2).unflatten(1, (key.shape[1], groups)).amax(2)
    return share, scores.logsumexp(-1)
