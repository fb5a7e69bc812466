"""FlashAttention's functions that LongLoRA's release calls, computed densely, for a machine without CUDA.

What they mean is FlashAttention's documentation: sequences of one packed row attend causally, each within its
bounds.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def unpad_input(rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Tokens [T, ...] of rows [B, N, ...] that the mask [B, N] has, their indices, the rows' bounds, the
    longest.
    """
    lengths = mask.sum(1)
    indices = mask.flatten().nonzero().flatten()
    bounds = F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    return rows.flatten(0, 1)[indices], indices, bounds, int(lengths.max())


def pad_input(tokens: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:
    """The way back: [B, N, ...], with zeros for padding."""
    rows = tokens.new_zeros(batch * length, *tokens.shape[1:])
    return rows.index_copy(0, indices, tokens).unflatten(0, (batch, length))


def packed_attention(
    qkv: Tensor, bounds: Tensor, longest: int, dropout: float, softmax_scale: float | None, causal: bool
) -> Tensor:
    """Attention [T, H, D] within each sequence of a packed row [T, 3, H, D]."""
    if dropout or not causal:
        raise NotImplementedError("only what LongLoRA asks for: causal, without dropout")
    ends = bounds.tolist()
    parts = []
    for begin, end in pairwise(ends):
        query, key, value = qkv[begin:end].permute(1, 2, 0, 3)
        own = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=softmax_scale)
        parts.append(own.transpose(0, 1))
    return torch.cat(parts)


def provide_flash_attention() -> None:
    """Let `import flash_attn` find these functions, unless there is a real one."""
    try:
        import flash_attn  # noqa: F401

        return
    except ImportError:
        pass
    package: Any = ModuleType("flash_attn")
    package.__version__ = "0"
    padding: Any = ModuleType("flash_attn.bert_padding")
    padding.pad_input, padding.unpad_input = pad_input, unpad_input
    interface: Any = ModuleType("flash_attn.flash_attn_interface")
    interface.flash_attn_func = interface.flash_attn_varlen_kvpacked_func = None  # of inference
    interface.flash_attn_varlen_qkvpacked_func = packed_attention
    for module in (package, padding, interface):
        sys.modules[module.__name__] = module
