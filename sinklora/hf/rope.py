"""Longer contexts by scaling rotary position embeddings (RoPE) of a loaded model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sinklora.hf.device import input_device
from sinklora.hf.rope_scaling import METHODS, extended_rope, rope_entries
from sinklora.records.checks import check_choice, check_value

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
    with the input, `yarn` arXiv 2309.00071 (an `attention_factor` of the config is kept). The factor is
    `length` over the length of pretraining, so that extending twice by the same method equals extending once.

    A model that was trained with a scaling goes on with it. `llama3` (Llama 3.1): short wavelengths keep
    their frequencies, the factor of the long ones grows by `length` over the present context. `longrope`
    (arXiv 2402.13753, Phi-3): beyond the length of pretraining every frequency is divided by as much, up to
    it frequencies stay; attention is scaled for the new factor at every length, which short inputs notice,
    unless the config gives an `attention_factor`. Where layer types have RoPE parameters of their own
    (Gemma 3), sliding windows keep theirs.

    The config keeps everything needed to reload: `rope_parameters` (its `rope_theta` kept),
    `max_position_embeddings` (for `dynamic` it stays the original length, from which transformers computes)
    and `original_max_position_embeddings`.

    ValueError: unknown method, `length` not above the present one, a model without RoPE or with a scaling
    that the method would undo, positions of different bases in its layers (Granite SWA), a config that does
    not say its length or whose class could not be loaded again.
    """
    transformer = find_transformer(model)
    check_choice("method", method, METHODS)
    check_value("length", length, int)
    state = extended_rope(transformer.config, length, method)
    _check_reload(transformer.config, state, method)
    restore_rope(transformer, state)
    return model


def rope_state(model: nn.Module) -> dict[str, Any]:
    """The config attributes that define positions, as JSON types; empty for a model without RoPE."""
    return rope_of_config(find_transformer(model).config)


def rope_of_config(config: PreTrainedConfig) -> dict[str, Any]:
    """The attributes of `config` that define positions, as JSON types; empty for a model without RoPE."""
    if getattr(config, "rope_parameters", None) is None:
        return {}
    return {key: copy.deepcopy(getattr(config, key)) for key in ROPE_KEYS if hasattr(config, key)}


def forget_longest_input(model: nn.Module) -> None:
    """Have `dynamic` positions of a model scaled by the next input alone, not by a longer one before it.

    As transformers does when it meets a short input: such a model is called with one token.
    """
    transformer = find_transformer(model)
    entries = rope_entries(getattr(transformer.config, "rope_parameters", None) or {})
    if any(entry.get("rope_type") == "dynamic" for entry in entries.values()):
        token = torch.zeros(1, 1, dtype=torch.long, device=input_device(transformer))
        transformer.get_decoder()(input_ids=token, use_cache=False)


def restore_rope(model: nn.Module, state: dict[str, Any]) -> nn.Module:
    """Set positions to `state` (from `rope_state`), rebuild the rotary modules; returns the same object."""
    transformer = find_transformer(model)
    if state == rope_state(transformer):
        return model
    before = rope_state(transformer)
    names = [name for name, module in transformer.named_modules() if is_rotary(module)]
    if not names or not before:
        raise ValueError(f"{type(transformer).__name__} has no rotary position embeddings to change")
    try:
        _set_attributes(transformer.config, state)
        rebuilt = {name: _rebuild(transformer, name) for name in names}
    except Exception:
        _set_attributes(transformer.config, before)
        raise
    for name, module in rebuilt.items():
        transformer.set_submodule(name, module)
    return model


def is_rotary(module: nn.Module) -> bool:
    """Whether `module` holds frequencies: `inv_freq`, or one such buffer per layer type."""
    return any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))


def _check_reload(config: PreTrainedConfig, state: dict[str, Any], method: str) -> None:
    """ValueError if the config's class would refuse `state` or read something else from its own file."""
    trial = copy.deepcopy(config)
    _set_attributes(trial, state)
    try:
        read = rope_of_config(type(config).from_dict(trial.to_dict()))
    except Exception as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ValueError(_not_reloadable(config, method, reason)) from error
    if read != state:
        raise ValueError(_not_reloadable(config, method, f"it reads {read['rope_parameters']}"))


def _not_reloadable(config: PreTrainedConfig, method: str, reason: str) -> str:
    return (
        f"method={method!r}: {type(config).__name__} does not read these positions back from its file, so "
        f"the extended model could not be loaded again ({reason}); choose another method or model"
    )


def _set_attributes(config: PreTrainedConfig, state: dict[str, Any]) -> None:
    for key in ROPE_KEYS:
        if key in state:
            setattr(config, key, copy.deepcopy(state[key]))
        elif hasattr(config, key):
            delattr(config, key)


def _rebuild(transformer: PreTrainedModel, name: str) -> nn.Module:
    # Frequencies stay float32 as after loading, even where the model was cast to half precision.
    rotary = transformer.get_submodule(name)
    config, kind = getattr(rotary, "config", None), type(rotary).__name__
    if config is None:
        raise ValueError(f"{kind} keeps no config from which it could be built again")
    if config is not transformer.config:
        raise ValueError(
            f"{kind} ({name}) is built from a config of its own (layers have positions of different bases), "
            "so it would stay as it is: change rope_parameters in the model's config file and load the model "
            "with it"
        )
    device = next(rotary.buffers()).device
    return type(rotary)(config=config).to(device).train(rotary.training)
