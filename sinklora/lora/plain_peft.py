"""What an adapter needs besides its weights, and peft's own loaders do not restore."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinklora.hf.models import evaluates_with_pattern
from sinklora.hf.rope import find_transformer, rope_of_config, rope_state
from sinklora.hf.rope_scaling import rope_entries
from sinklora.lora.base_model import config_on_disk


def lost_with_peft(model: nn.Module) -> list[str]:
    """What changes the logits of `model` and is in none of peft's files, in words; mostly nothing or RoPE."""
    lost = [f"positions ({describe_rope(rope_state(model))})"] if has_other_positions(model) else []
    return lost + (["evaluation with the training pattern"] if evaluates_with_pattern(model) else [])


def has_other_positions(model: nn.Module) -> bool:
    """Whether positions differ from the base model's on disk; without one, whether they are scaled."""
    rope, config = rope_state(model), config_on_disk(find_transformer(model))
    if config is not None:
        return rope != rope_of_config(config)
    return any(entry.get("rope_type", "default") != "default" for entry in _entries(rope))


def describe_rope(rope: dict[str, Any]) -> str:
    """Scaling and number of positions in words, such as "linear, factor 4, 8192 tokens"."""
    tokens = rope["max_position_embeddings"]
    parts = []
    for entry in _entries(rope):
        kind, factor = entry.get("rope_type", "default"), entry.get("factor")
        if kind == "default":
            continue
        parts.append(kind if factor is None else f"{kind}, factor {factor:g}")
        if kind == "dynamic":  # there the config keeps the length of pretraining
            tokens = round(tokens * factor)
    return f"{'; '.join(parts) or 'not scaled'}, {tokens} tokens"


def _entries(rope: dict[str, Any]) -> list[dict[str, Any]]:
    return list(rope_entries(rope["rope_parameters"]).values()) if rope else []
