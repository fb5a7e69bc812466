"""Models that answer to a `BudgetCache`: which can, and what prepares them for it."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig

from sinklora.hf.architecture import (
    check_architecture,
    check_attention_sinks,
    check_cacheable,
    check_wrapper,
    honours_interface,
)
from sinklora.hf.attention import CACHE_NAME
from sinklora.hf.attention_switch import AttentionSwitch
from sinklora.hf.rope import find_transformer


def enable_budget_caches(model: nn.Module) -> nn.Module:
    """Let `model` answer to every BudgetCache that it is called with; returns the same object.

    `BudgetCache(model, ...)` does this itself; it is for caches that were loaded, or made from a config. The
    model gets forward hooks, and changes in nothing else. ValueError where no BudgetCache can serve it.
    """
    transformer = find_transformer(model)
    check_wrapper(model)
    if AttentionSwitch.is_on(transformer):
        return model
    check_config(transformer.config)
    check_attention_sinks(transformer)
    if not honours_interface(transformer, CACHE_NAME):
        raise ValueError(
            f"{type(transformer).__name__} does not use transformers' AttentionInterface, so it "
            "cannot feed a BudgetCache: use DynamicCache, or an architecture that does (Llama, Mistral, ...)"
        )
    AttentionSwitch().install(transformer)
    return model


def check_config(config: PreTrainedConfig) -> None:
    """Raise ValueError for the config of a model that no BudgetCache can serve."""
    check_architecture(config)
    check_cacheable(config)
