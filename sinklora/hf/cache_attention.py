"""The attention function and the mask function behind a BudgetCache, `attn_implementation="sinklora_cache"`.

Importing this module adds that name to transformers' registries and changes nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from sinklora.cache.layer import layer_of
from sinklora.hf.document_ids import find_document_ids, full_attention_mask

CACHE_NAME = "sinklora_cache"

# Arguments by which some architectures change the scores: nothing here follows them, none may be dropped.
SCORE_CHANGING_ARGUMENTS = ("softcap", "s_aux", "position_bias")


def attend_cached(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    arguments: dict[str, Any],
) -> Tensor | None:
    """Attention over a BudgetCache, [B, H, N, D] -> [B, N, H, D]; None where the keys come from elsewhere.

    Raises ValueError for uses that a BudgetCache does not support.
    """
    layer = layer_of(key)
    if layer is None:
        return None
    layer.awaits_attention = False
    real = _check_call(module, attention_mask, arguments)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = layer.attend(module, *in_one_dtype(query, key, value), real, scale)
    return output.transpose(1, 2).contiguous()


def _check_call(module: Any, mask: Tensor | None, arguments: dict[str, Any]) -> Tensor | None:
    """Which tokens [B, Q] are no padding; None where none is."""
    if module.training:
        raise ValueError("a BudgetCache evicts and cannot be trained through: call model.eval() first")
    if arguments.get("use_cache") is False:
        raise ValueError(
            "use_cache=False (an argument, or the model's config) with a BudgetCache as past_key_values: "
            "pass use_cache=True, or leave the cache out"
        )
    changed = [name for name in SCORE_CHANGING_ARGUMENTS if arguments.get(name) is not None]
    if changed:
        raise ValueError(
            f"{type(module).__name__} gives attention {changed}, which a BudgetCache cannot follow"
        )
    if mask is None:
        return None
    if mask.ndim != 2:
        raise ValueError(
            "a BudgetCache cannot be combined with a 4-D attention mask: pass a 2-D one, or None"
        )
    if int(mask.max()) > 1:
        raise ValueError("a BudgetCache holds one document a row: unpack the rows, or pad them")
    return mask > 0


def in_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three in the dtype of the value; autocast leaves rotated queries and keys in float32 beside it."""
    device = value.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


def cache_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, [B,H,N,D] -> [B,N,H,D]: over a BudgetCache, otherwise `sdpa`."""
    answer = attend_cached(module, query, key, value, attention_mask, scaling, kwargs)
    if answer is not None:
        return answer, None
    if attention_mask is not None and attention_mask.ndim == 2:
        attention_mask = full_attention_mask(attention_mask)
    full: Any = AttentionInterface()["sdpa"]
    output: Tensor = full(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )[0]
    return output, None


def ids_or_mask(batch_size: int, q_length: int, kv_length: int, **arguments: Any) -> Tensor | None:
    """Document ids [B, N] of a whole sequence (0 is padding; None: one document without padding).

    An N x N mask is never made for one. A BudgetCache asks for its new tokens alone, so they count as whole;
    everything else (decoding, static caches, local attention, overlays) gets the mask of `sdpa`. The
    arguments are those of transformers' mask functions.
    """
    offset = arguments.get("kv_offset", 0)
    if q_length == kv_length and arguments.get("q_offset", 0) == offset:
        mask = arguments.get("attention_mask")
        own = mask if mask is None else mask[:, offset : offset + kv_length]
        causal, ids = find_document_ids(batch_size, kv_length, **{**arguments, "attention_mask": own})
        if causal:
            return ids
    full: Tensor | None = AttentionMaskInterface()["sdpa"](
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, **arguments
    )
    return full


AttentionInterface.register(CACHE_NAME, cache_attention)

AttentionMaskInterface.register(CACHE_NAME, ids_or_mask)
