"""What extending a context does to a config's numbers: which frequencies of RoPE are divided by how much.

Nothing here touches a model; `sinklora.hf.rope` does.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig

INTERPOLATIONS = ("linear", "dynamic", "yarn")  # of a model with plain positions, or already scaled so

CONTINUATIONS = ("llama3", "longrope")  # of a scaling that the model was trained with

METHODS = (*INTERPOLATIONS, *CONTINUATIONS)

LOCAL_LAYERS = ("sliding_attention", "chunked_attention")  # never look further than their window


def extended_rope(config: PreTrainedConfig, length: int, method: str) -> dict[str, Any]:
    """The attributes of `config` that address `length` positions by `method`; `config` stays as it is.

    With parameters per layer type, those of local attention (`LOCAL_LAYERS`) are kept. ValueError: `length`
    not above the present one, no RoPE, or a scaling that `method` would undo.
    """
    parameters = _parameters(config)
    places = _scaled_places(parameters, config)
    new = copy.deepcopy(parameters)
    for place in places:
        entry = parameters[place] if place else parameters
        original, present = _lengths(entry, config, method)
        if length <= present:
            raise ValueError(f"length must exceed the present context of {present} tokens, got {length}")
        changed = _scaled(entry, method, original, present, length)
        new = {**new, place: changed} if place else changed
    return {
        "rope_parameters": new,
        "max_position_embeddings": original if method == "dynamic" else length,
        "original_max_position_embeddings": original,
    }


def rope_entries(parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """RoPE parameters by layer type; under the name "" where all layers share them."""
    nested = {name: entry for name, entry in parameters.items() if isinstance(entry, dict)}
    return nested or {"": parameters}


def _parameters(config: PreTrainedConfig) -> dict[str, Any]:
    if config.get_text_config() is not config:
        raise ValueError(
            f"model_type={config.model_type!r} holds a text model among others: extend its text model alone"
        )
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        raise ValueError(
            f"model_type={config.model_type!r} has no rotary position embeddings to extend: "
            "rope_parameters is missing in its config"
        )
    return parameters


def _scaled_places(parameters: dict[str, Any], config: PreTrainedConfig) -> list[str]:
    """Names of the entries to change ("": the whole dict)."""
    places = [name for name in rope_entries(parameters) if name not in LOCAL_LAYERS]
    if unknown := set(places) - {"", "full_attention"}:
        raise ValueError(
            f"model_type={config.model_type!r} has rope_parameters for layers of type "
            f"{', '.join(sorted(unknown))}, which are neither full nor local attention: not supported"
        )
    if not places:
        raise ValueError(
            f"model_type={config.model_type!r} has rotary positions in local attention alone "
            f"({', '.join(parameters)}): there are none to extend"
        )
    return places


def _lengths(entry: dict[str, Any], config: PreTrainedConfig, method: str) -> tuple[int, int]:
    """(length of pretraining, present length) in tokens, once it is sure that `method` may change `entry`."""
    kind, longest = entry.get("rope_type", "default"), getattr(config, "max_position_embeddings", None)
    if longest is None:
        raise ValueError(
            f"model_type={config.model_type!r} has no max_position_embeddings in its config, so how far it "
            "could be extended is unknown"
        )
    if kind == "default" and method in INTERPOLATIONS:
        return longest, longest
    if kind == "default":
        raise ValueError(
            f"method={method!r} continues a scaling that the model has, but its rope_type is 'default': "
            f"choose one of {', '.join(INTERPOLATIONS)}"
        )
    if kind not in METHODS:
        raise ValueError(f"rope_type={kind!r} cannot be extended; those that can are {', '.join(METHODS)}")
    if kind != method:
        raise ValueError(
            f"the model's positions are already scaled with rope_type={kind!r}, which method={method!r} "
            f"would undo: pass method={kind!r}, which goes on from them"
        )
    if entry.get("mscale_all_dim"):
        raise ValueError(
            f"mscale_all_dim={entry['mscale_all_dim']} scales the attention of {config.model_type!r} by the "
            "factor that the model was built with: change rope_parameters in the config first and load the "
            "model with it (config=...)"
        )
    if kind in CONTINUATIONS:
        return entry["original_max_position_embeddings"], longest
    original = getattr(config, "original_max_position_embeddings", None) or entry.get(
        "original_max_position_embeddings"
    )
    if original is None:
        raise ValueError(
            f"the model's positions are scaled with rope_type={kind!r}, but its length of pretraining is "
            "unknown: set model.config.original_max_position_embeddings"
        )
    return original, round(original * (entry.get("factor") or longest / original))


def _scaled(entry: dict[str, Any], method: str, original: int, present: int, length: int) -> dict[str, Any]:
    stretch = length / present
    if method == "llama3":  # its short wavelengths stay, its long ones are divided by more
        return {**entry, "factor": entry["factor"] * stretch}
    if method == "longrope":  # up to the length of pretraining frequencies stay
        new = {**entry, "long_factor": [factor * stretch for factor in entry["long_factor"]]}
        return new | ({"factor": entry["factor"] * stretch} if entry.get("factor") else {})
    new = {**entry, "rope_type": method, "factor": length / original}
    return new | ({"original_max_position_embeddings": original} if method == "yarn" else {})
