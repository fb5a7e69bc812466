"""How much attention each key received, re-computed from the log-sum-exp of a flash pass (CPU).

The same two passes as `column_sums` and `column_maxima` have for CUDA; `column_sums_cpu.cpp`, compiled on
first use, has the second one of both, and the first one where no attention is wanted.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sinklora.operators.build import CompiledOperator

SOURCE = Path(__file__).with_name("column_sums_cpu.cpp")

COLUMN_SUMS = CompiledOperator("column_sums", SOURCE)

COLUMN_MAXIMA = CompiledOperator("column_maxima", SOURCE)

LOG_SUM_EXP = CompiledOperator("log_sum_exp", SOURCE)

# Compiling takes ten seconds. A shorter prompt does without the kernel even where it is there, so that the
# last bits of a result do not depend on what ran before.
TOKENS_WORTH_COMPILING = 1024


def sum_columns_on_cpu(
    query: Tensor, key: Tensor, log_sum_exp: Tensor, scale: float, *, weights: Tensor | None = None
) -> Tensor:
    """Sums over queries and grouped heads of the causal softmax: [B, Hkv, N] in float32.

    `query` [B, H, N, D], `key` [B, Hkv, N, D] in float32, bfloat16 or float16; `log_sum_exp` [B, H, N]
    (natural logarithm) of each query's scores; `weights` [B, N]: how much each query counts. Relative error
    about 1e-6 for the same log-sum-exp. Raises RuntimeError for shapes that do not go together, and where the
    operator cannot be had (`has_compiled_kernel`).
    """
    operator = COLUMN_SUMS.find()
    if operator is None:
        raise RuntimeError("column sums could not be compiled on this machine: use attend_and_sum")
    sums: Tensor = operator(query, key, log_sum_exp, scale, weights)
    return sums


def max_columns_on_cpu(query: Tensor, key: Tensor, log_sum_exp: Tensor, scale: float) -> Tensor:
    """Maxima over queries and grouped heads of the softmax over all keys: [B, Hkv, L] in float32.

    `query` [B, H, Q, D], `key` [B, Hkv, L, D], `log_sum_exp` [B, H, Q]; all else as in `sum_columns_on_cpu`.
    """
    operator = COLUMN_MAXIMA.find()
    if operator is None:
        raise RuntimeError("column maxima could not be compiled on this machine: use replay_maxima")
    maxima: Tensor = operator(query, key, log_sum_exp, scale)
    return maxima


def log_sum_exp_on_cpu(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The logarithm of each query's softmax sum over all keys, none of them masked: [B, H, Q] in float32.

    `query` [B, H, Q, D], `key` [B, Hkv, L, D]; all else as in `sum_columns_on_cpu`. FlashAttention would
    multiply with values as well.
    """
    operator = LOG_SUM_EXP.find()
    if operator is None:
        raise RuntimeError("log-sum-exp could not be compiled on this machine: use replay_maxima")
    logarithms: Tensor = operator(query, key, scale)
    return logarithms


def flash_on_cpu(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """FlashAttention's output [B, H, N, D] and log-sum-exp [B, H, N] on the CPU, of whole causal sequences.

    Grouped keys and values are read as they are. The log-sum-exp is float32; for half precision it errs by up
    to 6e-5, for float32 by 2e-6.
    """
    # It takes the numbers of a head to lie side by side, without looking.
    query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
    # PyTorch has no documented function that returns both; this is what its own SDPA calls.
    output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, True, scale=scale
    )
    return output, log_sum_exp


def has_compiled_kernel(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether flash and the compiled kernel serve these inputs: whole sequences on the CPU, no gradients.

    They have 1024 tokens or more; the first ones compile the kernel, which takes some ten seconds, once.
    """
    return (
        query.shape[2] == key.shape[2] >= TOKENS_WORTH_COMPILING
        and query.shape[3] == value.shape[3]
        and serves(query, key, value)
        and COLUMN_SUMS.find() is not None
    )


def has_compiled_maxima(query: Tensor, key: Tensor) -> bool:
    """Whether the compiled kernels find maxima for these inputs: enough of them, as for sums."""
    return (
        query.shape[2] * key.shape[2] >= TOKENS_WORTH_COMPILING**2
        and serves(query, key)
        and COLUMN_MAXIMA.find() is not None
    )


def serves(query: Tensor, *others: Tensor) -> bool:
    """Whether compiled operators take these inputs: on the CPU, of one dtype, no gradients, no graph."""
    inputs = (query, *others)
    return (
        all(x.device.type == "cpu" and x.dtype == query.dtype for x in inputs)
        and query.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))
        and not torch.compiler.is_compiling()
    )
