"""LongLoRA's adapters: LoRA on the attention projections plus trainable embeddings and normalization layers.

LongLoRA (arXiv 2309.12307, section 3.3) found that LoRA alone does not adapt to longer contexts, while LoRA
with trainable embeddings and norms does; this module calls that LoRA+.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import EMBEDDING_LAYER_NAMES
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sinklora.hf.models import remove_pattern
from sinklora.hf.rope import find_transformer


@dataclass(frozen=True)
class AdapterSize:
    """Trainable numbers of an adapter by kind, and the bytes they take (the file adds a header)."""

    lora: int
    embeddings: int
    norms: int
    bytes: int


def lora_plus(
    model: PreTrainedModel,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    train_embeddings: bool = True,
    train_norms: bool = True,
) -> PeftModel:
    """Wrap `model` in LoRA on its attention projections and make its input embeddings and norms trainable.

    What is adapted is decided by module types, not by names: every linear layer directly inside a
    `...Attention` module (q, k, v, o or a fused projection and the output), the input embedding, and every
    normalization layer with weights, among them the query and key norms of Qwen3. An output layer tied to the
    embedding stays tied and so is trained too. Trainable parameters are float32; with a model in half
    precision they compute on its dtype.

    ValueError: values out of range, an architecture without such attention layers, an adapter already
    present.
    """
    _check_values(rank, alpha, dropout)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"model must be a transformers PreTrainedModel without an adapter, got {type(model).__name__}"
        )
    projections = attention_projections(model)
    saved = (norm_layers(model) if train_norms else []) + (
        [embedding_name(model)] if train_embeddings else []
    )
    tied = train_embeddings and _is_tied(model)
    if tied and embedding_name(model).rpartition(".")[2] not in EMBEDDING_LAYER_NAMES:
        raise ValueError(
            f"peft cannot keep the embeddings of {type(model).__name__} tied: pass train_embeddings=False"
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=projections,
        modules_to_save=saved or None,
        ensure_weight_tying=tied,
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in projections),
        task_type="CAUSAL_LM",
    )
    wrapped = wrap(model, config)
    _check_wrapped(wrapped, projections, saved, tied)
    return wrapped


def wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """`model` with the (new) adapter that `config` describes; trainable parameters in float32."""
    wrapped = get_peft_model(model, config)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for layer in _saved_layers(wrapped).values():
        # A float32 layer inside a half-precision model would hand float32 to layers that cannot take it.
        if layer.original_module.weight.dtype != torch.float32:
            layer.register_forward_pre_hook(_to_weight_dtype)
            layer.register_forward_hook(_to_model_dtype)
    return wrapped


def set_weights(model: PeftModel, weights: dict[str, Tensor], source: str) -> None:
    """Copy adapter `weights` (peft's names) into `model`; ValueError unless names and shapes match."""
    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    problems = [f"missing {name}" for name in wanted.keys() - weights.keys()]
    problems += [f"unknown {name}" for name in weights.keys() - wanted.keys()]
    problems += [
        f"{name} is {list(weights[name].shape)}, the model has {list(wanted[name].shape)}"
        for name in wanted.keys() & weights.keys()
        if weights[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        raise ValueError(
            f"the weights of {source} do not fit the model ({len(problems)} differences): {shown}"
        )
    set_peft_model_state_dict(model, weights)


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Fold the adapter into the base model: a plain transformers model in the base model's dtypes.

    `model` is used up. The extended RoPE stays in the config, the pattern is removed: the result needs
    neither sinklora nor peft.
    """
    _check_adapter(model)
    originals = {name: layer.original_module for name, layer in _saved_layers(model.get_base_model()).items()}
    merged = model.merge_and_unload(safe_merge=True)
    for name, original in originals.items():
        layer = merged.get_submodule(name).to(original.weight.dtype)
        if isinstance(original, nn.Linear):  # a tied output layer: peft's stand-in has its sizes exchanged
            original.weight = layer.weight
            merged.set_submodule(name, original)
    remove_pattern(merged)
    merged.requires_grad_(True)
    return merged


def check_gradients(model: nn.Module) -> None:
    """RuntimeError naming the trainable tensors that have no gradient; call it after a backward pass.

    Gradient checkpointing without gradients at its inputs leaves layers untrained without any other sign.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise RuntimeError("no parameter of the model is trainable")
    missing = [name for name, parameter in trainable.items() if parameter.grad is None]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise RuntimeError(
            f"{len(missing)} of {len(trainable)} trainable tensors received no gradient: {shown}. With "
            "gradient checkpointing use use_reentrant=False, or call model.enable_input_require_grads()"
        )


def adapter_size(model: PeftModel) -> AdapterSize:
    """Count the trainable numbers of an adapter; a model on the `meta` device takes no memory for it."""
    _check_adapter(model)
    counts = {"lora": 0, "embeddings": 0, "norms": 0}
    size = 0
    for name, parameter in model.named_parameters():  # a tied tensor is listed once
        if ".lora_" in name or ".modules_to_save." in name:
            norm = ".lora_" not in name and parameter.ndim == 1
            counts["lora" if ".lora_" in name else "norms" if norm else "embeddings"] += parameter.numel()
            size += parameter.numel() * parameter.element_size()
    return AdapterSize(**counts, bytes=size)


def attention_projections(model: PreTrainedModel) -> list[str]:
    """Full names of the linear layers directly inside attention modules; ValueError when there are none."""
    names = [
        f"{name}.{child_name}"
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Attention")
        for child_name, child in module.named_children()
        if isinstance(child, nn.Linear | Conv1D)
    ]
    if not names:
        raise ValueError(f"found no attention projections in {type(model).__name__} to put LoRA on")
    return names


def norm_layers(model: PreTrainedModel) -> list[str]:
    """Full names of the normalization layers with weights (LayerNorm and RMSNorm classes of any model)."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm")) and any(True for _ in module.parameters())
    ]


def embedding_name(model: PreTrainedModel) -> str:
    """Full name of the input embedding."""
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding)


def _is_tied(model: PreTrainedModel) -> bool:
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight


def _saved_layers(model: nn.Module) -> dict[str, ModulesToSaveWrapper]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)
    }


def _to_weight_dtype(layer: ModulesToSaveWrapper, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Only a tied output layer needs it: norms take any dtype, embeddings take integers.
    first = inputs[0]
    if first.is_floating_point() and isinstance(layer.original_module, nn.Linear):
        first = first.to(layer.weight.dtype)
    return (first, *inputs[1:])


def _to_model_dtype(layer: ModulesToSaveWrapper, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.to(layer.original_module.weight.dtype)


def _check_values(rank: int, alpha: float, dropout: float) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be an int of at least 1, got {rank!r}")
    if isinstance(alpha, bool) or not isinstance(alpha, int) or alpha < 1:
        raise ValueError(f"alpha must be an int of at least 1, got {alpha!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a number in [0, 1), got {dropout!r}")


def _check_adapter(model: nn.Module) -> None:
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"model must be a PeftModel (from lora_plus or load_adapter), got {type(model).__name__}"
        )


def _check_wrapped(wrapped: PeftModel, projections: list[str], saved: list[str], tied: bool) -> None:
    # peft finds modules by the ends of their names; make sure that it found these and no others.
    base = wrapped.get_base_model()
    adapted = {name for name, module in base.named_modules() if hasattr(module, "lora_A")}
    stored = set(_saved_layers(base))
    head = find_transformer(base).get_output_embeddings()
    output = {name for name, module in base.named_modules() if module is head}
    if adapted != set(projections) or stored != set(saved) | (output if tied else set()):
        unexpected = sorted((adapted ^ set(projections)) | (stored ^ set(saved)) - output)
        raise ValueError(f"peft matched other modules than asked for: {unexpected}")
