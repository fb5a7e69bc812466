"""Which architectures patterns and bounded caches can serve, and why not the others."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# Methods of peft that hand keys and values of their own to the model.
CACHE_FILLING_METHODS = ("PREFIX_TUNING", "CARTRIDGE")


def attention_layers(config: PreTrainedConfig) -> list[int]:
    """Indices of the layers that attend; the others of a hybrid model (recurrent, convolution) do not."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return list(range(config.num_hidden_layers))
    return [index for index, kind in enumerate(kinds) if _attends(kind)]


def _attends(kind: str) -> bool:
    if kind.startswith("hybrid"):  # attention beside a recurrent state
        return True
    return kind == "minimax_m3_sparse" or ("attention" in kind and kind != "linear_attention")


def check_architecture(config: PreTrainedConfig) -> None:
    """Raise ValueError for models that neither a pattern nor a BudgetCache can serve.

    These are encoders, recurrent models and local attention.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"expected a decoder-only text model, got model_type={config.model_type!r}, an encoder-decoder"
        )
    if config.get_text_config() is not config:
        raise ValueError(
            f"expected a decoder-only text model, got model_type={config.model_type!r}, a multimodal one: "
            "load its text model alone, where transformers has a class for it"
        )
    if not _of_any_layer(config, "num_attention_heads"):
        raise ValueError(
            f"model_type={config.model_type!r} has no attention (its config names no attention heads; it is "
            "recurrent), so there is nothing for a pattern or a BudgetCache to do: choose a transformer"
        )
    context = getattr(config, "max_position_embeddings", None)
    kinds = getattr(config, "layer_types", None)
    for name, kind in (
        ("sliding_window", "sliding_attention"),
        ("attention_chunk_size", "chunked_attention"),
    ):
        window = getattr(config, name, None)
        used = kinds is None or kind in kinds
        if used and window is not None and context is not None and window < context:
            raise ValueError(
                f"{name}={window} is shorter than max_position_embeddings={context}: patterns and bounded "
                "caches take full attention and cannot be combined with it; load the model with "
                f"{full_attention_argument(config)} (full attention in every layer, also in those that were "
                "trained with local attention) or choose a model without local attention"
            )


def _of_any_layer(config: PreTrainedConfig, name: str) -> Any:
    """A number of the config, or None; layers that differ in it have a config each: then the first layer's
    that has one.
    """
    each = getattr(config, "per_layer_config", None) or [config]
    return next((value for of_layer in each if (value := getattr(of_layer, name, None))), None)


def full_attention_argument(config: PreTrainedConfig) -> str:
    """The argument of `from_pretrained` with which a model loads without local attention."""
    kinds = getattr(config, "layer_types", None)
    return "sliding_window=None" if kinds is None else f'layer_types=["full_attention"] * {len(kinds)}'


def check_wrapper(model: nn.Module) -> None:
    """Raise ValueError for prefix tuning, which gives the model keys and values of its own."""
    for module in model.modules():
        method = getattr(getattr(module, "active_peft_config", None), "peft_type", None)
        if method in CACHE_FILLING_METHODS:
            raise ValueError(
                f"peft's {getattr(method, 'value', method)} fills past_key_values itself, so neither a "
                "pattern nor a BudgetCache reaches the model: use LoRA, or prompt tuning, which changes the "
                "input embeddings instead"
            )


def check_cacheable(config: PreTrainedConfig) -> None:
    """Raise ValueError for architectures that `check_architecture` allows and a BudgetCache cannot serve."""
    cap = getattr(config, "attn_logit_softcapping", None)
    if cap is not None:
        raise ValueError(
            f"attn_logit_softcapping={cap}: the scores of {config.model_type} are soft-capped, which a "
            "BudgetCache cannot follow: use transformers' DynamicCache"
        )
    rank = _of_any_layer(config, "kv_lora_rank")
    if rank is not None:
        raise ValueError(
            f"kv_lora_rank={rank}: {config.model_type} has multi-head latent attention, which stores keys "
            "and values in a compressed form, for all heads at once, so a BudgetCache cannot choose what a "
            "head keeps: use transformers' DynamicCache"
        )
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    others = {
        type(layer).__name__ for layer in DynamicCache(config=config).layers if type(layer) not in plain
    }
    if others:
        raise ValueError(
            f"{config.model_type} stores more than the keys and values of each layer (transformers gives it "
            f"{', '.join(sorted(others))}), which a BudgetCache cannot hold: use transformers' DynamicCache"
        )


def check_attention_sinks(transformer: PreTrainedModel) -> None:
    """Raise ValueError for learned sinks, logits that take part in the softmax (GPT-OSS)."""
    sinks = [name for name, _ in transformer.named_parameters() if name.endswith(".sinks")]
    if sinks:
        raise ValueError(
            f"{type(transformer).__name__} has learned attention sinks ({sinks[0]}, ...), which take part in "
            "its softmax and which a BudgetCache cannot follow: use transformers' DynamicCache"
        )


def honours_interface(transformer: PreTrainedModel, implementation: str) -> bool:
    """Whether the architecture takes its attention from transformers' AttentionInterface; changes nothing."""
    config = transformer.config
    before = config._attn_implementation
    try:
        transformer.set_attn_implementation(implementation)
        return bool(config._attn_implementation == implementation)
    finally:
        config._attn_implementation = before
