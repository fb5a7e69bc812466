"""Attention of one query a row over heads that keep different numbers of tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sinklora.cache.ragged import starts
from sinklora.cache.ragged_attention_cpu import attend_ragged_on_cpu, has_compiled_attention


class RaggedHeads(NamedTuple):
    """Whose tokens are where: `slots` of each key/value head; `of_slot` [T]: each slot's head.

    `many`: whether the layers that step together have so many slots that compiling operators for them pays.
    """

    slots: list[int]
    of_slot: Tensor
    many: bool = False


def attend_ragged(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    weights: Tensor,
    key_heads: RaggedHeads,
    visible: Tensor | None = None,
) -> Tensor:
    """Attention of one query a row; its softmax is written to `weights` [groups, T].

    `query` [B, H, 1, D]; `key`, `value` [T, D]: the tokens of the B * Hkv key/value heads one after the
    other -> [B, H, 1, D]; `weights` in float32 (float64 for float64); `visible` [T]: False
    hides a key. On the CPU by a compiled operator, in float32 throughout, where there are `many` slots, else
    head by head, as little is waited for; elsewhere all heads at once.
    """
    if key_heads.many and has_compiled_attention(query, key, value):
        return attend_ragged_on_cpu(query, key, value, scale, weights, key_heads.slots, visible)
    batch, heads, _, size = query.shape
    kv_heads = len(key_heads.slots) // batch
    grouped = query.reshape(batch * kv_heads, -1, size)
    together = query.device.type != "cpu" or torch.compiler.is_compiling()
    attend = _all_heads if together else _head_by_head
    return attend(grouped, key, value, scale, weights, key_heads, visible).reshape(batch, heads, 1, -1)


def _head_by_head(
    grouped: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    weights: Tensor,
    key_heads: RaggedHeads,
    visible: Tensor | None,
) -> Tensor:
    outputs, slots = [], key_heads.slots
    parts = zip(grouped, key.split(slots), value.split(slots), starts(slots), strict=True)
    for queries, keys, values, begin in parts:
        nothing = queries[:1, :1]  # beta=0: it is not looked at
        scores = torch.addmm(nothing, queries, keys.T, beta=0, alpha=scale)
        if visible is not None:
            scores = scores.masked_fill(~visible[begin : begin + len(keys)], float("-inf"))
        head_weights = scores.softmax(-1, dtype=weights.dtype)
        weights[:, begin : begin + len(keys)] = head_weights
        outputs.append(head_weights.to(values.dtype) @ values)
    return torch.stack(outputs)


def _all_heads(
    grouped: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    weights: Tensor,
    key_heads: RaggedHeads,
    visible: Tensor | None,
) -> Tensor:
    """As many operators for many heads as for one; each token is multiplied with the queries of its head.

    In the dtype of `weights`: on CUDA `index_add_` adds in its own, where a head's many addends would vanish.
    """
    head, precision = key_heads.of_slot, weights.dtype
    scores = (grouped.to(precision)[head] * scale * key[:, None]).sum(-1).T
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    at = head.expand_as(scores)
    most = scores.new_full((len(scores), len(grouped)), float("-inf")).scatter_reduce_(1, at, scores, "amax")
    exponents = (scores - most.gather(1, at)).exp()
    sums = torch.zeros_like(most).scatter_add_(1, at, exponents)
    torch.div(exponents, sums.gather(1, at), out=weights)
    weighted_values = weights.T[..., None] * value[:, None]
    output = torch.zeros(grouped.shape, dtype=precision, device=grouped.device)
    return output.index_add_(0, head, weighted_values).to(value.dtype)
