"""The attention function and the mask function that transformers calls for a model of sinklora's.

Importing this module adds them to transformers' registries, under two names, and changes nothing else:
`ATTENTION_NAME` stands in the config of a model with a pattern, `CACHE_NAME` in the config of any model while
it is called with a BudgetCache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from sinklora.attention.dispatch import attend
from sinklora.attention.patterns import FULL
from sinklora.attention.sequence_parallel.shard_attention import attend_shard
from sinklora.cache.layer import layer_of
from sinklora.hf.attention_checks import (
    check_cached_call,
    check_evaluation_call,
    check_pattern_call,
    check_sharded_call,
)
from sinklora.hf.cache_positions import RotaryPositions
from sinklora.hf.document_ids import find_document_ids, full_attention_mask
from sinklora.hf.pattern_settings import PatternSettings
from sinklora.hf.probe import record_call

ATTENTION_NAME = "sinklora"

CACHE_NAME = "sinklora_cache"


def sinklora_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **arguments: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: query [B,H,N,D], key, value [B,Hkv,L,D] -> [B,N,H,D].

    Over what a BudgetCache keeps where one handed out the keys; else by the pattern of `module.config` while
    `module.training` (or always, if so configured), and by transformers' `sdpa` function in evaluation.
    With `sequence_shard` (a SequenceShard, given to the model by that name) the tokens are this process's
    part of whole rows, and those of the other processes are attended to as well.
    `attention_mask` is what `document_mask` returned (document ids [B,N], a mask [B,1,N,L], or None), or a
    4-D mask that the caller gave to the model. ValueError for what none of them can do.
    """
    if layer_of(key) is not None:
        return _attend_cached(module, query, key, value, attention_mask, scaling, arguments), None
    if module.config._attn_implementation == CACHE_NAME:
        raise ValueError(
            f"{type(module).__name__} attends to keys that the cache did not hand out (they are stored in "
            "another form, as in multi-head latent attention, or not at all), so a BudgetCache cannot evict "
            "from them: use transformers' DynamicCache for this architecture"
        )
    settings = PatternSettings.from_config(module.config)
    # Queries of a model in float32 come in float32, under autocast too: its results stay what they were.
    tiles = query.dtype == torch.bfloat16 and not query.is_cuda and settings.pattern.windows() is not None
    query, key, value = _in_one_dtype(query, key, value)
    pattern = settings.pattern if module.training or settings.evaluate_with_pattern else FULL
    shard = arguments.get("sequence_shard")
    if shard is not None:
        check_sharded_call(module, query, key, attention_mask, dropout, shard, arguments)
        return attend_shard(query, key, value, pattern, shard, scale=scaling).transpose(
            1, 2
        ).contiguous(), None
    if module.training or settings.evaluate_with_pattern:
        check_pattern_call(module, query, key, attention_mask, dropout, arguments)
        record_call(module, attention_mask)
        backend = "sdpa_tiles" if tiles else "auto"
        output = attend(
            query, key, value, pattern, scale=scaling, document_ids=attention_mask, backend=backend
        )
        return output.transpose(1, 2).contiguous(), None
    check_evaluation_call(module, query, key, attention_mask, arguments)
    if attention_mask is not None and attention_mask.ndim == 2:
        attention_mask = full_attention_mask(attention_mask)
    full: Any = AttentionInterface()["sdpa"]
    output = full(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **arguments)[0]
    return output, None


def _attend_cached(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    arguments: dict[str, Any],
) -> Tensor:
    layer = layer_of(key)
    assert layer is not None
    if not layer.awaits_attention or layer_of(value) is not layer:
        raise ValueError(
            f"{type(module).__name__} changes the values that it stores, or attends to the same keys more "
            "than once, so a BudgetCache cannot follow: use transformers' DynamicCache for this architecture"
        )
    seen = layer.get_seq_length()
    real = check_cached_call(
        module, seen, query, key, value, attention_mask, arguments, masks_are_made=layer.constant_size
    )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(layer.rotation, RotaryPositions):
        query, key = layer.rotation.unrotated(query, key, arguments.get("position_ids"))
    output = layer.attend(module, *_in_one_dtype(query, key, value), real, scale)
    layer.awaits_attention = False
    return output.transpose(1, 2).contiguous()


def _in_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three in the dtype of the value; autocast leaves rotated queries and keys in float32 beside it."""
    device = value.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


def document_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    config: PreTrainedConfig | None = None,
    **arguments: Any,
) -> Tensor | None:
    """Document ids [B, N] of a whole sequence (0 is padding; None: one document without padding).

    Called once per forward, without knowing the model's mode; an N x N mask is never made for a whole
    sequence. A BudgetCache asks for its new tokens alone, so they count as whole; everything else (decoding,
    static caches, local attention, overlays) gets the mask of `sdpa`. The arguments are those of
    transformers' mask functions.
    """
    if config is not None and config._attn_implementation == ATTENTION_NAME:
        # transformers consumes this mark on loading; without it the next save would forget the pattern.
        config.attn_implementation = ATTENTION_NAME
    offset = arguments.get("kv_offset", 0)
    newest_alone = q_length == kv_length == 1 and offset == -1
    if newest_alone or (q_length == kv_length and arguments.get("q_offset", 0) == offset):
        mask = arguments.get("attention_mask")
        own = None if mask is None else mask[:, -1:] if newest_alone else _newest(mask, offset, kv_length)
        causal, ids = find_document_ids(batch_size, kv_length, **{**arguments, "attention_mask": own})
        if causal:
            return ids
    full: Tensor | None = AttentionMaskInterface()["sdpa"](
        batch_size=batch_size, q_length=q_length, kv_length=kv_length, config=config, **arguments
    )
    return full


def _newest(mask: Tensor, seen: int, length: int) -> Tensor:
    """The part of a padding mask that belongs to `length` tokens after `seen` ones."""
    if mask.shape[1] < seen + length:
        raise ValueError(
            f"attention_mask covers {mask.shape[1]} tokens, expected {seen + length}: the {seen} in the "
            f"cache and the {length} new ones"
        )
    return mask[:, seen : seen + length]


for _name in (ATTENTION_NAME, CACHE_NAME):
    AttentionInterface.register(_name, sinklora_attention)
    AttentionMaskInterface.register(_name, document_mask)
