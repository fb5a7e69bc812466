"""Which modules of a model LoRA+ adapts or trains in full, found by their types and not by their names."""

from __future__ import annotations

import re

from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

ATTENTION = re.compile(r"(Attention|MLA)$")  # class names; MLA: multi-head latent attention

NORM = re.compile(r"(Layer|RMS|Group)Norm")  # also LayerNorm1P, RMSNormGated, ...


def attention_projections(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers directly inside attention modules.

    In a quantized model any layer with `in_features` and `out_features` counts as one. Left out are layers
    that multiply in groups (the first output projection of DeepSeek V4): an adapter would add the product of
    all groups to each. ValueError when there are none.
    """
    quantization = getattr(model.config, "quantization_config", None)
    names = [
        f"{name}.{child_name}"
        for name, module in model.named_modules()
        if ATTENTION.search(type(module).__name__)
        for child_name, child in module.named_children()
        if (isinstance(child, nn.Linear | Conv1D) and not _is_grouped(child))
        or (quantization is not None and hasattr(child, "in_features") and hasattr(child, "out_features"))
    ]
    if not names:
        reason = (
            "no module whose class is named ...Attention holds linear layers"
            if quantization is None
            else f"the layers of its quantization ({_method(quantization)}) are of no kind that peft adapts"
        )
        raise ValueError(f"found no attention projections in {type(model).__name__} to put LoRA on: {reason}")
    return names


def _is_grouped(layer: nn.Module) -> bool:
    return int(getattr(layer, "n_groups", 1)) > 1


def norm_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the normalization layers with weights (layer, RMS and group norms of any model).

    A block that merely carries "LayerNorm" in its name holds other layers with weights, and is none.
    """
    return [name for name, module in model.named_modules() if is_norm(module)]


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalization layer with weights, all of them its own."""
    own = len(list(module.parameters(recurse=False)))
    return bool(NORM.search(type(module).__name__)) and own == len(list(module.parameters())) > 0


def embedding_name(model: PreTrainedModel) -> str:
    """Full name of the input embedding."""
    return _name_of(model, model.get_input_embeddings())


def output_name(model: PreTrainedModel) -> str:
    """Full name of the output layer (the language modelling head)."""
    return _name_of(model, model.get_output_embeddings())


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output layer shares its weight with the input embedding."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def check_tying(model: PreTrainedModel) -> None:
    """ValueError for tied embeddings that peft would not keep tied while it trains them."""
    if not is_tied(model):
        return
    name, output = embedding_name(model).rpartition(".")[2], model.get_output_embeddings()
    reason = None
    if name not in EMBEDDING_LAYER_NAMES:
        reason = f"it looks for {' or '.join(EMBEDDING_LAYER_NAMES)}, not {name}"
    elif getattr(output, "bias", None) is not None:
        reason = "it would drop the bias of the output layer"
    if reason:
        raise ValueError(
            f"peft cannot keep the embeddings of {type(model).__name__} tied ({reason}): pass "
            "train_embeddings=False"
        )


def _name_of(model: PreTrainedModel, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _method(quantization: object) -> str:
    values = quantization if isinstance(quantization, dict) else vars(quantization)
    return str(getattr(values.get("quant_method"), "value", values.get("quant_method")))
