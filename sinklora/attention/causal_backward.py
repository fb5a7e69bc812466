"""Causal attention with a compiled backward pass: for bfloat16 on a processor with tiles (AMX).

PyTorch's own backward pass on the CPU takes four to five times as long as its forward pass (2.13: it
multiplies at a fifth of the rate of a plain product). The one here takes half of that, and is more exact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinklora.operators.build import CompiledOperator

CAUSAL_BACKWARD = CompiledOperator("causal_backward", Path(__file__).with_name("causal_backward_cpu.cpp"))

# In all windows of a call. Compiling takes ten seconds; fewer tokens do without even where it is compiled, so
# that the last bits of a result do not depend on what ran before.
TOKENS_WORTH_COMPILING = 1024


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal softmax attention by PyTorch's forward pass and the compiled backward pass, differentiable once.

    `query` [B, H, N, D], `key` and `value` [B, Hkv, N, D] -> [B, H, N, D]. Inputs that the compiled pass does
    not serve (`has_compiled_backward`) take PyTorch's own.
    """
    if not has_compiled_backward(query, key, value):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    output: Tensor = _CausalAttention.apply(query, key, value, scale)
    return output


def has_compiled_backward(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the compiled backward pass serves these inputs: bfloat16 on a processor with tiles for it.

    They have 1024 tokens or more in all; the first ones compile it, which takes some ten seconds, once.
    """
    inputs = (query, key, value)
    return (
        all(type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.bfloat16 for x in inputs)
        and query.shape[3] == value.shape[3]
        and query.shape[0] * query.shape[2] >= TOKENS_WORTH_COMPILING
        and torch.is_grad_enabled()
        and any(x.requires_grad for x in inputs)
        and not torch.compiler.is_compiling()
        and torch.cpu._is_amx_tile_supported()
        and CAUSAL_BACKWARD.find() is not None
    )


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        # The kernels take the numbers of a head to lie side by side.
        query, key, value = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key, value))
        # No documented function returns the log-sum-exp too; this is what PyTorch's own SDPA calls.
        output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )
        ctx.save_for_backward(query, key, value, output, log_sum_exp)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        operator = CAUSAL_BACKWARD.find()
        assert operator is not None
        query, key, value, output, log_sum_exp = ctx.saved_tensors
        to_query, to_key, to_value = operator(query, key, value, output, log_sum_exp, gradients[0], ctx.scale)
        kv_heads = key.shape[1]
        to_key, to_value = (x.unflatten(1, (kv_heads, -1)).sum(2) for x in (to_key, to_value))
        return to_query.sum(0).to(query.dtype), to_key.to(key.dtype), to_value.to(value.dtype), None
