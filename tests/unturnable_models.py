"""Models whose queries and keys cannot be turned to other positions, each for a reason of its own."""

from typing import Any

from transformers import AutoModelForCausalLM, GPT2Config, SmolLM3Config

from sinklora.hf.rope import extend_context
from tiny_models import tiny_config, tiny_model


def with_learned_positions() -> Any:
    config = GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=61, n_positions=64)
    return AutoModelForCausalLM.from_config(config).eval()


def with_changing_frequencies() -> Any:
    return extend_context(tiny_model("llama-gqa"), 256, method="dynamic")


def with_a_layer_without_positions() -> Any:
    sizes: dict[str, Any] = tiny_config("llama-gqa").to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    given = {name: sizes[name] for name in (*names, "max_position_embeddings", "pad_token_id")}
    config = SmolLM3Config(num_hidden_layers=2, no_rope_layers=[1, 0], **given)
    return AutoModelForCausalLM.from_config(config).eval()
