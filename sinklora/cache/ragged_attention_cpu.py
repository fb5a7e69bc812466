"""Decoding over heads that keep different numbers of tokens, by compiled operators (CPU).

`ragged_attention_cpu.cpp`, compiled on first use, reads keys and values once for all queries that share them,
and shares heads out among threads by their tokens; PyTorch's own operators would be called head by head.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sinklora.cache.column_sums_cpu import serves
from sinklora.operators.build import CompiledOperator

SOURCE = Path(__file__).with_name("ragged_attention_cpu.cpp")

RAGGED_ATTENTION = CompiledOperator("ragged_attention", SOURCE)

LOWEST_SLOTS = CompiledOperator("lowest_slots", SOURCE)

# Of all layers that step together, since some may have few. Compiling takes half a minute, as long as some
# hundreds of steps head by head; fewer slots (a model with 30 layers of three heads and 45 tokens each) do
# without the operators even where they are there, so that the last bits do not depend on what ran before.
SLOTS_WORTH_COMPILING = 4096


def attend_ragged_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    weights: Tensor,
    slots: Sequence[int],
    visible: Tensor | None = None,
) -> Tensor:
    """Attention [B, H, 1, D] of one query a row; its softmax is written to `weights` [groups, T] in float32.

    `query` [B, H, 1, D], `key` and `value` [T, D] in float32, bfloat16 or float16: the tokens of B * Hkv
    heads one after the other, `slots` of each; `visible` [T]: False hides a key. Everything is summed in
    float32, in an order that does not depend on the number of threads: relative error of the weights about
    2e-6 for scores of some units. A head without slots gives zeros, one that sees nothing gives nan.
    Raises RuntimeError for shapes or dtypes that do not go together, and where the operator cannot be had
    (`has_compiled_attention`).
    """
    operator = RAGGED_ATTENTION.find()
    if operator is None:
        raise RuntimeError("ragged attention could not be compiled on this machine: use attend_ragged")
    output: Tensor = operator(query, key, value, slots, scale, visible, weights)
    return output


def lowest_slots_on_cpu(
    rank: Tensor,
    positions: Tensor,
    slots: Sequence[int],
    row_of_head: Tensor,
    first_recent: Tensor,
    protected: Tensor,
) -> Tensor:
    """The slot [heads] of each head whose token leaves: see `leaving_slots`.

    `rank` [T] in float32, `positions` [T], `first_recent` and `protected` [B] in int32, `row_of_head` [heads]
    in int64; each head has a slot. Raises RuntimeError as `attend_ragged_on_cpu`.
    """
    operator = LOWEST_SLOTS.find()
    if operator is None:
        raise RuntimeError("lowest slots could not be compiled on this machine: use leaving_slots")
    lowest: Tensor = operator(rank, positions, slots, row_of_head, first_recent, protected)
    return lowest


def has_compiled_attention(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the compiled operator serves these inputs: contiguous keys and values on the CPU, no gradients.

    The first ones compile it, once. Whether they are enough for that, their step says.
    """
    return (
        serves(query, key, value)
        and key.is_contiguous()
        and value.is_contiguous()
        and RAGGED_ATTENTION.find() is not None
    )


def has_compiled_eviction(rank: Tensor) -> bool:
    """Whether the compiled operator finds the lowest of these ranks."""
    return (
        rank.device.type == "cpu"
        and rank.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and LOWEST_SLOTS.find() is not None
    )
