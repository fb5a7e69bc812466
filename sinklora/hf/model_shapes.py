"""Models by the name of their shape, with random weights: time and memory do not depend on the values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from sinklora.pretrained.catalogue import PACKAGED_MODELS
from sinklora.pretrained.fetch import model_path


def _llama(
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    vocabulary: int,
    theta: float = 10_000.0,
    tied: bool = False,
) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": vocabulary,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "tie_word_embeddings": tied,
        }
    )


SHAPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama2-7b": _llama(4096, 11008, 32, 32, 32, 32_000),
        "llama2-70b": _llama(8192, 28672, 80, 64, 8, 32_000),
        "llama3-8b": _llama(4096, 14336, 32, 32, 8, 128_256, theta=500_000.0),
        "llama-100m": _llama(768, 2048, 12, 12, 12, 16_384, tied=True),
        "base": _llama(256, 768, 4, 4, 4, 4096, tied=True),  # data/base
    }
)

# Names on the hub whose shapes are known without fetching them.
HUB_SHAPES: Mapping[str, str] = MappingProxyType(
    {
        "meta-llama/Llama-2-7b-hf": "llama2-7b",
        "meta-llama/Llama-2-7b-chat-hf": "llama2-7b",
        "meta-llama/Meta-Llama-3-8B": "llama3-8b",
    }
)


def shape_config(shape: str, context: int, layers: int | None = None) -> PreTrainedConfig:
    """The config of a shape, of a packaged model or of a local model's folder, for rows of `context` tokens;
    `layers`: with so many in place of its own.

    Raises ValueError for a name that is none of them, FetchError for a packaged model that cannot be fetched.
    """
    if shape in SHAPES:
        config: PreTrainedConfig = LlamaConfig(
            **SHAPES[shape], max_position_embeddings=context, use_cache=False
        )
        return _with_layers(config, layers)
    path = model_path(shape)
    if not (Path(path) / "config.json").is_file():
        raise ValueError(
            f"shape={shape!r}: expected one of {', '.join((*SHAPES, *PACKAGED_MODELS))}, or a model's folder"
        )
    config = AutoConfig.from_pretrained(path)
    config.max_position_embeddings = max(context, config.max_position_embeddings)
    return _with_layers(config, layers)


def _with_layers(config: PreTrainedConfig, layers: int | None) -> PreTrainedConfig:
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    return config


def random_model(
    shape: str,
    context: int,
    *,
    layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """A causal language model of a shape with small random weights, made on its device in its dtype."""
    config = shape_config(shape, context, layers)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model
