"""A prompt, or a turn of several tokens, in a layer of a bounded cache.

Attention chunk by chunk over what is kept and the chunk itself; after each, what the budget allows stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sinklora.cache.eviction import keep_chosen
from sinklora.cache.scored_attention import attend_and_sum
from sinklora.cache.scores import NewTokens
from sinklora.cache.sharing import keep_shared
from sinklora.cache.slots import EMPTY

if TYPE_CHECKING:
    from sinklora.cache.layer import BudgetLayer


def attend_prompt(
    layer: BudgetLayer, query: Tensor, key: Tensor, value: Tensor, counts: list[int], scale: float
) -> Tensor:
    """Several tokens a row, `counts` of them real, at once or chunk by chunk."""
    assert layer.rows is not None
    layer.rows.start_turn(layer.policy, counts)
    step = layer.prefill_chunk or query.shape[2]
    outputs = []
    for begin in range(0, query.shape[2], step):
        q, k, v = (x[:, :, begin : begin + step] for x in (query, key, value))
        outputs.append(
            _attend_chunk(layer, q, k, v, [min(max(n - begin, 0), q.shape[2]) for n in counts], scale)
        )
    return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]


def _attend_chunk(
    layer: BudgetLayer, query: Tensor, key: Tensor, value: Tensor, counts: list[int], scale: float
) -> Tensor:
    """Attend with a chunk of new tokens, add them, keep what the budget allows."""
    layer.pad()
    rows, count = layer.counted(), query.shape[2]
    whole = counts == [count] * len(rows) and not layer.uneven
    ordered = whole and rows.stored == rows.next_slots == [layer.used] * len(rows)
    keys, values, positions = layer.with_stored(key, value, _new_positions(layer, counts, key.shape[:3]))
    placed = keys
    if layer.rotation is not None:
        length = max(rows.stored) + count
        places = rows.next_places() + torch.arange(count, device=query.device)
        query = layer.rotation.rotated(query, places, length)
        placed = layer.rotation.rotated(keys, layer.places(positions), layer.used + count)
    new = NewTokens(
        query,
        placed,
        values,
        positions,
        layer.used,
        counts,
        rows.tokens,
        scale,
        complete=ordered,
        rotation=layer.query_rotation,
    )
    output = _attend_and_score(layer, new)
    rows.count(counts)
    _keep(layer, keys, values, positions, ordered=ordered)
    return output


def _keep(layer: BudgetLayer, keys: Tensor, values: Tensor, positions: Tensor, *, ordered: bool) -> None:
    """Hold of all these tokens those that stay; where the model shares slots, all until `keep_shared`."""
    among = layer.policy.sharing.among
    if among == "head" or not (layer.uneven or any(layer.counted().leaving)):
        keep_chosen(layer, keys, values, positions, ordered=ordered)
        return
    state = {} if layer.scorer is None else layer.scorer.state
    layer.replace(keys, values, {**state, "positions": positions})
    layer.used, layer.awaits_sharing = positions.shape[-1], layer.shares_in_model
    if not layer.awaits_sharing:
        keep_shared([layer])


def _new_positions(layer: BudgetLayer, counts: list[int], shape: torch.Size) -> Tensor:
    """Where new tokens [B, Hkv, Q], `counts` of them real, stand in their rows; EMPTY for padding."""
    assert layer.rows is not None
    before, width = layer.rows.numbers(layer.rows.tokens), shape[2]
    if counts == [width] * len(counts) and isinstance(before, int):
        index = torch.arange(before, before + width, dtype=torch.int32, device=layer.device)
        return index.expand(shape)
    index = torch.arange(width, device=layer.device)
    return torch.where(index < layer.rows.numbers(counts), before + index, EMPTY).int().expand(shape)


def _attend_and_score(layer: BudgetLayer, new: NewTokens) -> Tensor:
    """Attention of a chunk, and its scores."""
    assert layer.rows is not None
    # Padding stands behind the real tokens of a whole prompt, where causality hides it.
    whole = min(new.counts) == new.query.shape[2] and not layer.uneven
    even = not new.used or (whole and min(layer.rows.stored) == layer.used)
    sums = None
    if new.used or (layer.scorer is not None and layer.scorer.needs_sums):
        weights = None if layer.scorer is None else layer.scorer.query_weights(new)
        valid = None if even else new.positions >= 0
        output, sums = attend_and_sum(
            new.query, new.keys, new.values, new.scale, weights=weights, valid=valid
        )
    else:
        grouped = new.query.shape[1] != new.keys.shape[1]
        output = F.scaled_dot_product_attention(
            new.query, new.keys, new.values, is_causal=True, scale=new.scale, enable_gqa=grouped
        )
    if layer.scorer is not None:
        layer.scorer.extend(new, sums)
    return output
