"""The bridge to Hugging Face transformers: attention patterns on models that honour AttentionInterface."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import find_pattern
from sinklora.hf.architecture import check_architecture, check_wrapper
from sinklora.hf.attention import ATTENTION_NAME
from sinklora.hf.pattern_settings import CONFIG_KEY, PatternSettings
from sinklora.hf.probe import probe_model
from sinklora.hf.rope import find_transformer

CONFIG_ATTRIBUTES = (CONFIG_KEY, "attn_implementation")


def use_pattern(
    model: nn.Module, pattern: Pattern | str, *, evaluate_with_pattern: bool = False, probe: bool = True
) -> nn.Module:
    """Let `model` attend by `pattern` while it trains, and by its own full attention in every other mode.

    Returns the same object. `model` is a causal language model of transformers or a wrapper around one
    (PeftModel). Exact with left and right padding (2-D `attention_mask`) and with packed documents
    (restarting `position_ids`, `attention_mask=None`, `use_cache=False`); document starts that get lost, by
    an `attention_mask` or a cache, are an error in training and in evaluation. Positions that jump forward
    (PoSE) start a document too unless an `attention_mask` of ones comes with them. `evaluate_with_pattern`
    also uses the pattern in `model.eval()` on whole sequences; `evaluates_with_pattern(model)` tells, so that
    results can be labelled.

    The pattern is stored in `model.config`; after `save_pretrained`, `from_pretrained` restores it once
    `import sinklora.hf` has run. Without that import transformers says that `attn_implementation="sinklora"`
    is not supported; with `attn_implementation="sdpa"` such a model loads without its pattern. transformers
    drops a part of what is stored while it loads: call `use_pattern(model, current_pattern(model))` before
    a loaded model is saved again without having been called.

    Two forward passes over a few tokens check that every layer really uses the pattern and receives padding
    and document starts. `probe=False` skips them, for weights that cannot run yet (partitioned by ZeRO-3, on
    `meta`).

    ValueError, the model then being as before: the architecture does not honour `AttentionInterface`; it
    soft-caps its scores, drops attention weights, has learned sinks, latent attention, masks of its own, or a
    sliding window shorter than its context; it is not causal, an encoder-decoder or multimodal; peft's prefix
    tuning is around it.
    """
    settings = PatternSettings(find_pattern(pattern), bool(evaluate_with_pattern))
    transformer = find_transformer(model)
    config = transformer.config
    check_architecture(config)
    check_wrapper(model)
    before = {key: getattr(config, key) for key in CONFIG_ATTRIBUTES if hasattr(config, key)}
    implementation = config._attn_implementation
    engaged = implementation == ATTENTION_NAME and CONFIG_KEY in before
    settings = replace(settings, replaced=before[CONFIG_KEY]["replaced"] if engaged else implementation)
    try:
        _engage(transformer, settings)
        if probe and not settings.pattern.whole_rows_only:  # the probe packs documents
            probe_model(transformer)
    except Exception:
        _restore(transformer, before, implementation)
        raise
    return model


def current_pattern(model: nn.Module) -> Pattern | None:
    """The pattern that `model` trains with, or None when it uses another attention implementation."""
    config = find_transformer(model).config
    engaged = config._attn_implementation == ATTENTION_NAME
    return PatternSettings.from_config(config).pattern if engaged else None


def evaluates_with_pattern(model: nn.Module) -> bool:
    """True when `model` uses its training pattern in evaluation mode too (such results must say so)."""
    config = find_transformer(model).config
    engaged = config._attn_implementation == ATTENTION_NAME
    return engaged and PatternSettings.from_config(config).evaluate_with_pattern


def remove_pattern(model: nn.Module) -> nn.Module:
    """Give `model` back the attention it had before `use_pattern`; returns the same object.

    One that was set since stays; the pattern leaves the config all the same.
    """
    transformer = find_transformer(model)
    config = transformer.config
    if config._attn_implementation == ATTENTION_NAME:
        _restore(transformer, {}, PatternSettings.from_config(config).replaced)
    else:
        if hasattr(config, CONFIG_KEY):
            delattr(config, CONFIG_KEY)
        if getattr(config, "attn_implementation", None) == ATTENTION_NAME:
            del config.attn_implementation
    return model


def _engage(transformer: PreTrainedModel, settings: PatternSettings) -> None:
    transformer.set_attn_implementation(ATTENTION_NAME)
    config = transformer.config
    if config._attn_implementation != ATTENTION_NAME:
        raise ValueError(
            f"{type(transformer).__name__} does not use transformers' AttentionInterface, so no pattern can "
            "be put on it: use an architecture that does (Llama, Mistral, Qwen, Gemma, GPT-NeoX, Phi-3, ...)"
        )
    setattr(config, CONFIG_KEY, settings.to_dict())
    # transformers does not save its own record of the implementation; under this name it reads it back.
    config.attn_implementation = ATTENTION_NAME


def _restore(transformer: PreTrainedModel, attributes: dict[str, Any], implementation: str) -> None:
    for key in CONFIG_ATTRIBUTES:
        if key in attributes:
            setattr(transformer.config, key, attributes[key])
        elif hasattr(transformer.config, key):
            delattr(transformer.config, key)
    transformer.set_attn_implementation(implementation)
