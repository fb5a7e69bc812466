"""Models whose queries and keys cannot be turned to other positions, each for a reason of its own."""

from typing import Any

from transformers import AutoModelForCausalLM, GPT2Config, Olmo3Config, PhiConfig, SmolLM3Config

from sinklora.hf.rope import extend_context
from tiny_models import tiny_config, tiny_model


def with_learned_positions() -> Any:
    config = GPT2Config(n_embd=32, n_head=4, n_layer=1, vocab_size=61, n_positions=64)
    return AutoModelForCausalLM.from_config(config).eval()


def with_changing_frequencies() -> Any:
    return extend_context(tiny_model("llama-gqa"), 256, method="dynamic")


def with_positions_in_a_part_of_each_head() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = PhiConfig(vocab_size=61, **sizes, rope_parameters={"partial_rotary_factor": 0.5})
    return AutoModelForCausalLM.from_config(config).eval()


def with_positions_by_layer_type() -> Any:
    sizes: dict[str, Any] = tiny_config("llama-gqa").to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "pad_token_id")
    given = {name: sizes[name] for name in (*names, "max_position_embeddings", "num_hidden_layers")}
    config = Olmo3Config(**given, layer_types=["full_attention"] * 2, sliding_window=None)
    return AutoModelForCausalLM.from_config(config).eval()


def with_a_layer_without_positions() -> Any:
    sizes: dict[str, Any] = tiny_config("llama-gqa").to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    given = {name: sizes[name] for name in (*names, "max_position_embeddings", "pad_token_id")}
    config = SmolLM3Config(num_hidden_layers=2, no_rope_layers=[1, 0], **given)
    return AutoModelForCausalLM.from_config(config).eval()
