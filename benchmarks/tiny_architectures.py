"""A tiny random model of every causal architecture that the installed transformers knows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 97
PARAMETERS = 40_000_000  # more are not tiny
CONTEXT = 64  # tokens: `max_position_embeddings`
WINDOW = 16  # tokens: local attention where the architecture has it below its context

# Sizes by the names that configs have for them; each config gets those that it has.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "rotary_dim": 4,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 48,
    "shared_intermediate_size": 16,
    # attention through low ranks
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    "index_head_dim": 8,
    "index_n_heads": 2,
    "index_topk": CONTEXT,
    # state-space and linear layers
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "mamba_d_head": "auto",
    "mamba_head_dim": 16,
    "mamba_n_groups": 1,
    "n_groups": 1,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "state_size": 8,
    "ssm_state_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "lru_width": 32,
    "attention_window_size": WINDOW,
    # noise in training, like dropout
    "router_jitter_noise": 0.0,
    "input_jitter_noise": 0.0,
    "moe_jitter_eps": None,
}

# What the sizes do not say, by architecture.
CHANGES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_d_head": 16, "mamba_expand": 2},
    "big_bird": {"attention_type": "original_full"},
    "ctrl": {"dff": 48},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16, "mamba_n_heads": 4},
    "flex_olmo": {"num_key_value_heads": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "mamba_d_head": 16, "mamba_expand": 2},
    "gpt_bigcode": {"multi_query": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
        "ple_embed_dim": 32,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "llama4_text": {"no_rope_layers": [1, 0]},
    "longcat_flash": {"num_layers": 1, "zero_expert_num": 1},
    "minimax": {"block_size": 8},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"]},
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds": False,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 8,
    },
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "xlnet": {"d_inner": 48, "d_head": 8},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["mamba", "hybrid"], "use_mamba_kernels": False},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def architectures() -> list[str]:
    """The model types of `AutoModelForCausalLM`, but for names whose config is another one's."""
    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if CONFIG_MAPPING[name].model_type == name]


def class_name(model_type: str) -> str:
    """The model class that `AutoModelForCausalLM` makes of a config."""
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]


def without_window(model_type: str) -> PreTrainedConfig:
    """The config that sinklora's refusal of local attention asks for: full attention in every layer."""
    changes: dict[str, Any] = {"sliding_window": None}
    if "layer_types" in tiny_config(model_type).get_text_config().__dict__:
        changes["layer_types"] = ["full_attention", "full_attention"]
    return tiny_config(model_type, **changes)


def with_wide_window(model_type: str) -> PreTrainedConfig:
    """Local attention that reaches as far as the context, which is full attention too."""
    return tiny_config(model_type, sliding_window=CONTEXT)


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """A small config: `SIZES` as far as it has them, no dropout, local windows below the context if so by
    default. `changes` are of the language model where there are others beside it.
    """
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    values = _small(default)
    if "text_config" in kind.sub_configs:
        text = default.get_text_config()
        values["text_config"] = _small(text) | CHANGES.get(text.model_type, {}) | changes
        changes = {}
    return kind(**(values | CHANGES.get(model_type, {}) | changes))


def _small(default: PreTrainedConfig) -> dict[str, Any]:
    known = set(default.to_dict()) | set(type(default).attribute_map)
    values = {name: size for name, size in SIZES.items() if name in known}
    values |= {name: 0.0 for name, value in default.to_dict().items() if _is_dropout(name, value)}
    values |= _local_window(default)
    kinds = list(dict.fromkeys(default.__dict__.get("layer_types") or []))
    if len(kinds) > 1:  # one layer of each of two kinds, where there are several
        values["layer_types"] = [kinds[0], "full_attention" if "full_attention" in kinds[1:] else kinds[1]]
    if "kv_lora_rank" in known:
        values["num_key_value_heads"] = SIZES["num_attention_heads"]  # keys come from a common low rank
    if "is_decoder" in known:
        values["is_decoder"] = True  # encoders are causal only when told so
    return values


def _is_dropout(name: str, value: Any) -> bool:
    return isinstance(value, float) and (
        "dropout" in name or "pdrop" in name or "drop_rate" in name or name == "layerdrop"
    )


def _local_window(default: PreTrainedConfig) -> dict[str, Any]:
    """Local attention shorter than the context stays so; other windows are none."""
    context = getattr(default, "max_position_embeddings", None) or CONTEXT
    values = {}
    for name in ("sliding_window", "attention_chunk_size"):
        window = getattr(default, name, None)
        if isinstance(window, int):
            values[name] = WINDOW if window < context else CONTEXT
    return values


def tiny_model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model in evaluation mode whose weights are large enough that attention matters to the logits."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.float().eval()


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """A tiny model that runs; of a config that cannot be made tiny, a model without weights."""
    with torch.device("meta"):
        shape: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    parameters = sum(parameter.numel() for parameter in shape.parameters())
    if parameters > PARAMETERS:
        if shape.config.get_text_config() is not shape.config:
            return shape  # refused for what it is, before any weight is needed
        raise ValueError(f"{parameters} parameters at the smallest sizes known here")
    model = tiny_model(config)
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 23)[None], use_cache=False).logits
    if not logits.isfinite().all():
        raise ValueError("its logits are not finite")
    return model
