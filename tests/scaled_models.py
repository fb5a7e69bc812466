"""Tiny models with one kind of rotary position embeddings each."""

from typing import Any

from sinklora.hf.rope import extend_context
from tiny_models import tiny_model

SCALINGS = ["default", "linear", "yarn", "llama3"]


def scaled_model(scaling: str, layers: int = 2) -> Any:
    """A tiny model with one kind of RoPE; 64 positions in its config, those of pretraining where scaled."""
    model = tiny_model("llama-gqa", num_hidden_layers=layers)
    if scaling in ("linear", "yarn"):
        extend_context(model, 256, method=scaling)
    if scaling == "llama3":
        parameters = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        parameters |= {"original_max_position_embeddings": 64}
        model = tiny_model("llama-gqa", rope_parameters=parameters, num_hidden_layers=layers)
    return model.double()
