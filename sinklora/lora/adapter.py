"""LongLoRA's adapters: LoRA on the attention projections plus trainable embeddings and normalization layers.

LongLoRA (arXiv 2309.12307, section 3.3) found that LoRA alone does not adapt to longer contexts, while LoRA
with trainable embeddings and norms does; this module calls that LoRA+.
"""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sinklora.hf.models import remove_pattern
from sinklora.hf.rope import find_transformer
from sinklora.lora.adapted_model import (
    LoraPlusModel,
    in_base_dtypes,
    lora_model,
    original_layers,
    saved_layers,
    wrap,
)
from sinklora.lora.adapter_files import check_lora
from sinklora.lora.base_model import added_rows, check_base_model
from sinklora.lora.trained_modules import (
    attention_projections,
    check_tying,
    embedding_name,
    is_tied,
    norm_layers,
    output_name,
)
from sinklora.records.checks import Count, Share, check_value


def lora_plus(
    model: PreTrainedModel,
    rank: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    train_embeddings: bool = True,
    train_norms: bool = True,
    train_output_layer: bool = False,
) -> LoraPlusModel:
    """Wrap `model` in LoRA on its attention projections and make its input embeddings and norms trainable.

    What is adapted is decided by module types, not by names: every linear layer directly inside an
    `...Attention` module (q, k, v, o or a fused projection and the output), the input embedding, and every
    normalization layer with weights, among them the query and key norms of Qwen3. An output layer tied to the
    embedding stays tied and so is trained too; one of its own is with `train_output_layer`, which a model
    with added tokens needs: a warning says so where the base model on disk has fewer. Trainable parameters
    are float32; with a model in half precision they compute on its dtype.

    TypeError: `model` is wrapped (peft, `torch.compile`, several devices). ValueError: values out of range,
    no causal language model, an architecture without such attention layers, a quantization that peft does
    not adapt, layers of an adapter inside.
    """
    _check_values(rank, alpha, dropout)
    check_base_model(model)
    projections = attention_projections(model)
    tied = is_tied(model)
    if train_embeddings:
        check_tying(model)
    saved = (norm_layers(model) if train_norms else []) + (
        [embedding_name(model)] if train_embeddings else []
    )
    if train_output_layer and not (tied and train_embeddings):
        saved.append(_own_output_name(model))
    _warn_of_added_rows(model, saved, tied)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=projections,
        modules_to_save=saved or None,
        ensure_weight_tying=tied and train_embeddings,
        fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in projections),
        task_type="CAUSAL_LM",
    )
    wrapped = _wrap(model, config)
    _check_wrapped(wrapped, projections, saved, tied and train_embeddings)
    return wrapped


def set_weights(model: PeftModel, weights: dict[str, Tensor], source: str, adapter: str = "default") -> None:
    """Copy `weights` (peft's names) into an adapter of `model`; ValueError unless names and shapes match."""
    wanted = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
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
    set_peft_model_state_dict(model, weights, adapter_name=adapter)


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Fold the active adapter into the base model: a plain transformers model in the base model's dtypes.

    `model` is used up. The extended RoPE stays in the config, the pattern is removed: the result needs
    neither sinklora nor peft. ValueError: an adapter of another kind than LoRA.
    """
    _check_adapter(model)
    for name, config in model.peft_config.items():
        check_lora(config, f"model (adapter {name!r})")
    originals = original_layers(model)
    merged = in_base_dtypes(lora_model(model).merge_and_unload(safe_merge=True), originals)
    remove_pattern(merged)
    for parameter in merged.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # quantized ones are integers
    return merged


def check_gradients(model: nn.Module) -> None:
    """RuntimeError naming the trainable tensors that have no gradient; call it after a backward pass.

    Gradient checkpointing without gradients at its inputs leaves layers untrained without any other sign, and
    so does a module that the forward pass never uses.
    """
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise RuntimeError("no parameter of the model is trainable")
    missing = [name for name, parameter in trainable.items() if parameter.grad is None]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise RuntimeError(
            f"{len(missing)} of {len(trainable)} trainable tensors received no gradient: {shown}. With "
            "gradient checkpointing use use_reentrant=False, or call model.enable_input_require_grads(). "
            "Modules that take no part in the pass (cross-attention without an encoder, an indexer that only "
            "selects): take them out of training, model.get_parameter(name).requires_grad_(False)"
        )


def _own_output_name(model: PreTrainedModel) -> str:
    if is_tied(model):
        raise ValueError(
            "train_output_layer=True, train_embeddings=False: the output layer is tied to the embedding, so "
            "both are trained or neither"
        )
    return output_name(model)


def _warn_of_added_rows(model: PreTrainedModel, saved: list[str], tied: bool) -> None:
    untrained = {"train_embeddings": embedding_name(model), "train_output_layer": output_name(model)}
    if tied:
        untrained.pop("train_output_layer")
    untrained = {option: name for option, name in untrained.items() if name not in saved}
    count = added_rows(model) if untrained else 0
    if count:
        options = " and ".join(f"{option}=True" for option in untrained)
        warnings.warn(
            f"{count} rows of {' and '.join(untrained.values())} are new since {model.name_or_path} was "
            f"loaded, and will be neither trained nor saved with the adapter: pass {options}, or save the "
            "resized base model and train on that",
            stacklevel=3,
        )


def _wrap(model: PreTrainedModel, config: LoraConfig) -> LoraPlusModel:
    try:
        return wrap(model, {"default": config})
    except ValueError as error:
        raise ValueError(
            f"peft does not adapt the attention of {type(model).__name__} ({error}): give peft itself a "
            "LoraConfig whose target_modules it takes, such as q_proj, k_proj, v_proj and o_proj"
        ) from error


def _check_values(rank: int, alpha: float, dropout: float) -> None:
    for name, value in (("rank", rank), ("alpha", alpha)):
        check_value(name, value, Count)
    check_value("dropout", dropout, Share)


def _check_adapter(model: nn.Module) -> None:
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"model must be a PeftModel (from lora_plus or load_adapter), got {type(model).__name__}"
        )


def _check_wrapped(wrapped: PeftModel, projections: list[str], saved: list[str], tied: bool) -> None:
    # peft finds modules by the ends of their names; make sure that it found these and no others.
    base = wrapped.get_base_model()
    adapted = {name for name, module in base.named_modules() if hasattr(module, "lora_A")}
    stored = set(saved_layers(base))
    head = find_transformer(base).get_output_embeddings()
    output = {name for name, module in base.named_modules() if module is head}
    if adapted != set(projections) or stored != set(saved) | (output if tied else set()):
        unexpected = sorted((adapted ^ set(projections)) | (stored ^ set(saved)) - output)
        raise ValueError(f"peft matched other modules than asked for: {unexpected}")
