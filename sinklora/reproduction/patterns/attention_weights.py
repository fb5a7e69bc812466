"""A model's attention weights, one layer at a time: all layers of a long text at once would not fit."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinklora.hf.device import input_device
from sinklora.hf.rope import forget_longest_input

Visit = Callable[[int, Tensor], None]


@torch.inference_mode()
def visit_attention(model: PreTrainedModel, ids: Sequence[int] | np.ndarray, visit: Visit) -> None:
    """Read one text and call `visit(layer, weights)` with each layer's weights [H, N, N], float32.

    A layer's weights are freed before the next ones are computed unless `visit` keeps them. The model's
    attention is `eager` meanwhile. ValueError where a layer hands out no weights.
    """
    tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None].to(input_device(model))
    forget_longest_input(model)
    visited: list[int] = []
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "layer_idx")]
    hooks = [module.register_forward_hook(partial(_hand_over, visited, visit)) for module in modules]
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        model.base_model(tokens, use_cache=False)
    finally:
        model.set_attn_implementation(implementation)
        for hook in hooks:
            hook.remove()
    layers = model.config.num_hidden_layers
    if visited != list(range(layers)):
        raise ValueError(
            f"{type(model).__name__}: of {layers} layers {visited} gave attention weights; this architecture "
            "cannot be looked at"
        )


def _hand_over(visited: list[int], visit: Visit, module: nn.Module, inputs: Any, output: Any) -> None:
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if isinstance(weights, Tensor) and weights.ndim == 4:
        layer = int(getattr(module, "layer_idx"))  # noqa: B009 (nn.Module's attributes have no type)
        visited.append(layer)
        visit(layer, weights[0].float())


def chosen_maps(
    model: PreTrainedModel, ids: Sequence[int] | np.ndarray, layers: Sequence[int], heads: Sequence[int]
) -> dict[tuple[int, int], Tensor]:
    """The weights [N, N] of some layers' heads on one text, by (layer, head).

    IndexError, before the text is read, for a layer or head that the model does not have.
    """
    config = model.config
    for name, chosen, count in (
        ("layers", layers, config.num_hidden_layers),
        ("heads", heads, config.num_attention_heads),
    ):
        if wrong := [index for index in chosen if not 0 <= index < count]:
            raise IndexError(
                f"{name}={list(chosen)}: the model has {count} of them, numbered from 0, not {wrong}"
            )
    maps: dict[tuple[int, int], Tensor] = {}

    def keep(layer: int, weights: Tensor) -> None:
        if layer in layers:
            maps.update({(layer, head): weights[head].clone() for head in heads})

    visit_attention(model, ids, keep)
    return maps
