"""Longer contexts by scaling rotary position embeddings (RoPE) of a loaded model."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

METHODS = ("linear", "dynamic", "yarn")

ROPE_KEYS = ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings")


def find_transformer(model: nn.Module) -> PreTrainedModel:
    """The outermost transformers model in `model`; TypeError when there is none."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, PreTrainedModel):
            return module
    raise TypeError(f"model must be or contain a transformers PreTrainedModel, got {type(model).__name__}")


def extend_context(model: nn.Module, length: int, method: str = "linear") -> nn.Module:
    """Let a loaded `model` address `length` positions; returns the same object.

    `linear` is position interpolation (arXiv 2306.15595, used by LongLoRA), `dynamic` NTK scaling that grows
    with the input, `yarn` arXiv 2309.00071. The factor is `length` over the length of pretraining, so that
    extending twice by the same method equals extending once. The config keeps everything needed to reload:
    `rope_parameters` (its `rope_theta` kept), `max_position_embeddings` (for `dynamic` it stays the original
    length, from which transformers computes) and `original_max_position_embeddings`.

    ValueError: unknown method, `length` not above the present one, a model without RoPE or with a scaling of
    its own.
    """
    transformer = find_transformer(model)
    config = transformer.config
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if isinstance(length, bool) or not isinstance(length, int):
        raise TypeError(f"length must be a number of tokens (int), got {length!r}")
    original, current = _context_lengths(config, method)
    if length <= current:
        raise ValueError(f"length must exceed the present context of {current} tokens, got {length}")
    parameters = {**config.rope_parameters, "rope_type": method, "factor": length / original}
    if method == "yarn":
        parameters["original_max_position_embeddings"] = original
    restore_rope(
        transformer,
        {
            "rope_parameters": parameters,
            "max_position_embeddings": original if method == "dynamic" else length,
            "original_max_position_embeddings": original,
        },
    )
    return model


def rope_state(model: nn.Module) -> dict[str, Any]:
    """The config attributes that define positions, as JSON types; empty for a model without RoPE."""
    config = find_transformer(model).config
    if getattr(config, "rope_parameters", None) is None:
        return {}
    return {key: copy.deepcopy(getattr(config, key)) for key in ROPE_KEYS if hasattr(config, key)}


def restore_rope(model: nn.Module, state: dict[str, Any]) -> nn.Module:
    """Set positions to `state` (from `rope_state`), rebuild the rotary modules; returns the same object."""
    transformer = find_transformer(model)
    if state == rope_state(transformer):
        return model
    before = rope_state(transformer)
    names = [name for name, module in transformer.named_modules() if hasattr(module, "inv_freq")]
    if not names or not before:
        raise ValueError(f"{type(transformer).__name__} has no rotary position embeddings to change")
    try:
        _set_attributes(transformer.config, state)
        rebuilt = {name: _rebuild(transformer.get_submodule(name)) for name in names}
    except Exception:
        _set_attributes(transformer.config, before)
        raise
    for name, module in rebuilt.items():
        transformer.set_submodule(name, module)
    return model


def _set_attributes(config: PreTrainedConfig, state: dict[str, Any]) -> None:
    for key in ROPE_KEYS:
        if key in state:
            setattr(config, key, copy.deepcopy(state[key]))
        elif hasattr(config, key):
            delattr(config, key)


def _rebuild(rotary: nn.Module) -> nn.Module:
    # Frequencies stay float32 as after loading, even where the model was cast to half precision.
    device = next(rotary.buffers()).device
    return type(rotary)(config=rotary.config).to(device).train(rotary.training)


def _context_lengths(config: PreTrainedConfig, method: str) -> tuple[int, int]:
    """(length of pretraining, present length) in tokens."""
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise ValueError(
            f"model_type={config.model_type!r} has no rotary position embeddings (rope_parameters) to extend"
        )
    kind = parameters.get("rope_type")
    if kind is None:
        raise ValueError(
            f"model_type={config.model_type!r} has rope_parameters per layer type, which is not supported"
        )
    if kind == "default":
        return config.max_position_embeddings, config.max_position_embeddings
    if kind != method:
        raise ValueError(
            f"the model's positions are already scaled with rope_type={kind!r}, which method={method!r} "
            "would undo: extend the base model instead, or keep to the same method"
        )
    original = getattr(config, "original_max_position_embeddings", None) or parameters.get(
        "original_max_position_embeddings"
    )
    if original is None:
        raise ValueError(
            f"the model's positions are scaled with rope_type={kind!r}, but its length of pretraining is "
            "unknown: set model.config.original_max_position_embeddings"
        )
    return original, round(original * parameters["factor"])
