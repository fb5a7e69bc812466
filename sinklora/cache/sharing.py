"""Which tokens stay where heads share the slots of their budgets: those of a layer, or of the whole model.

A head that looks far needs more tokens than one that looks at its neighbours. AdaKV (arXiv 2407.11550)
divides a layer's budget between its heads by what their scores say, KVzip (arXiv 2505.23416) the model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.eviction import newest_first, ranked
from sinklora.cache.policies import Split
from sinklora.cache.ragged import pack
from sinklora.cache.slots import EMPTY
from sinklora.cache.storage import TokenStorage


def keep_shared(layers: Sequence[TokenStorage]) -> None:
    """Evict what is too much in layers that hold all tokens of a chunk; from then on their heads differ.

    In rows whose budget is shared (`Rows.shares`: several tokens came), all heads of all `layers` together
    have as many slots as so many budgets. What always stays, stays in each head, with the best of its heavy
    hitters, `own_share` of those that a budget has; all other slots go to the highest scores of any head. In
    rows to which a single token came, each head keeps its number. Of equal scores the newer token stays, of
    equally old ones that of the earlier layer or head.
    """
    rows = layers[0].counted()
    longest = max(layer.held_positions().shape[-1] for layer in layers)
    ranks = [ranked(layer, layer.held_positions()) for layer in layers]
    rank = torch.stack([_widened(x, longest, float("-inf")) for x in ranks], 1)  # [B, layers, Hkv, L]
    positions = torch.stack([_widened(layer.held_positions(), longest, EMPTY) for layer in layers], 1)
    quotas = torch.stack([_quotas(layer) for layer in layers], 1)
    chosen = _best(rank, positions, quotas)
    heads = positions.shape[1] * positions.shape[2]
    slots = [split.total * heads * shares for split, shares in zip(rows.splits, rows.shares, strict=True)]
    left = torch.tensor(slots, device=positions.device) - chosen.flatten(1).sum(-1)
    rank, positions = (
        x.masked_fill(chosen, fill).flatten(1) for x, fill in ((rank, float("-inf")), (positions, EMPTY))
    )
    kept = chosen | _best(rank, positions, left).view_as(chosen)
    hold(
        layers,
        [
            of_layer[..., : layer.held_positions().shape[-1]]
            for of_layer, layer in zip(kept.unbind(1), layers, strict=True)
        ],
    )


def hold(layers: Sequence[TokenStorage], kept: Sequence[Tensor]) -> None:
    """Let layers hold only what is `kept` [B, Hkv, L] of each, packed, with the free slots that rows need."""
    rows = layers[0].counted()
    # One look at the device for all layers.
    counts = torch.stack([of_layer.sum(-1) for of_layer in kept]).flatten(1).tolist()
    heads = layers[0].kv_heads
    free = [
        split.total - stored + 1
        for split, stored in zip(rows.splits, rows.stored, strict=True)
        for _ in range(heads)
    ]
    for layer, of_layer, count in zip(layers, kept, counts, strict=True):
        assert layer.keys is not None and layer.values is not None
        layer.hold_ragged(pack(layer.keys, layer.values, layer.columns(), of_layer, count, free))


def _quotas(layer: TokenStorage) -> Tensor:
    """How many of its best tokens each head [B, Hkv, 1] of a layer keeps whatever other heads have."""
    rows, sharing = layer.counted(), layer.policy.sharing
    sure = rows.numbers([_sure(split, sharing.own_share) for split in rows.splits])
    alone = (layer.held_positions() >= 0).sum(-1, keepdim=True) - rows.numbers(rows.leaving)
    return torch.where(torch.tensor(rows.shares, device=layer.device)[:, None, None], sure, alone)


def _sure(split: Split, own_share: float) -> int:
    """What always stays of a budget, and a head's own part of its heavy hitters."""
    recent = max(split.recent, 1)
    return min(split.protected + recent + int(own_share * split.heavy + 1e-9), split.total)


def _best(rank: Tensor, positions: Tensor, count: Tensor) -> Tensor:
    """Which of [..., L] tokens are the `count` [...] ones of the highest rank; EMPTY positions never are."""
    order = newest_first(rank, positions)
    place = torch.empty_like(order)
    place.scatter_(-1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order))
    return (place < (count if count.ndim == rank.ndim else count[..., None])) & (positions >= 0)


def _widened(x: Tensor, length: int, fill: float) -> Tensor:
    return F.pad(x, (0, length - x.shape[-1]), value=fill)
