"""The model below an adapter: which ones can carry one, and how it is recognised again."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sinklora.hf.rope import find_transformer

BASE_KEYS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")

NUMBERS_OF_A_ROW = 8  # are kept of the last row of an untrained embedding

ROUNDING = 0.01  # relative; a base saved in float32 may be loaded in bfloat16

SMALLEST = 1e-6  # absolute; below it float16 rounds more coarsely than that

READABLE = (torch.float32, torch.bfloat16, torch.float16)  # smaller ones round by more


def check_base_model(model: Any, argument: str = "model") -> None:
    """TypeError for a wrapper instead of a model, ValueError for one that is no causal language model."""
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            raise TypeError(
                f"{argument} has learned prompts ({model.active_peft_config.peft_type.value}), beside which "
                f"no adapter can be put: take the model before them ({argument}.get_base_model())"
            )
        raise TypeError(
            f"{argument} has an adapter already ({type(model).__name__}): fold it in with merge_adapter "
            "first, or put a further one beside it with add_adapter"
        )
    if hasattr(model, "_orig_mod"):
        raise TypeError(
            f"{argument} is compiled ({type(model).__name__}): take the model inside ({argument}._orig_mod) "
            "and compile the result"
        )
    if _is_distributed(model):
        raise TypeError(
            f"{argument} is wrapped for several devices ({type(model).__name__}): take the model before it "
            "is wrapped, and wrap the result"
        )
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"{argument} must be a transformers PreTrainedModel, got {type(model).__name__}")
    _check_language_model(model, argument)


def describe_base(model: PreTrainedModel) -> dict[str, Any]:
    """The sizes by which a base model is recognised (`BASE_KEYS`)."""
    return {key: getattr(model.config, key, None) for key in BASE_KEYS}


def last_rows(model: nn.Module) -> dict[str, list[float]]:
    """First numbers of the last row of each embedding that is not trained, and of the last matrix below them,
    by their full names.

    `resize_token_embeddings` draws new rows at random, and an adapter does not bring them: they tell whether
    another base model was resized in the same way. The matrix tells one base from another of the same sizes.
    Weights elsewhere (`meta`, ZeRO-3) or quantized ones are left out.
    """
    transformer = find_transformer(model)
    ends = [*embedding_names(transformer), *_matrix_names(transformer)[-1:]]
    rows: dict[str, list[float]] = {}
    for name in ends:
        module = transformer.get_submodule(name)
        if isinstance(module, ModulesToSaveWrapper):
            continue
        weight: Any = module.weight
        if _is_matrix(weight) and weight.numel() and weight.dtype in READABLE and not weight.is_meta:
            rows[name] = weight[-1, :NUMBERS_OF_A_ROW].detach().float().tolist()
    return rows


def embedding_names(transformer: PreTrainedModel) -> list[str]:
    """Full names of a model's embeddings, of tokens and of the output."""
    ends = (transformer.get_input_embeddings(), transformer.get_output_embeddings())
    return [name for name, module in transformer.named_modules() if module in ends]


def _matrix_names(transformer: PreTrainedModel) -> list[str]:
    """Full names of the matrices of a model's layers, in order, without what adapters put beside them."""
    left_out = embedding_names(transformer)
    names: list[str] = []
    for name, module in transformer.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            left_out.append(name)
        inside = any(f"{name}.".startswith(f"{taken}.") for taken in (*names[-1:], *left_out))
        if not inside and _is_matrix(getattr(module, "weight", None)):
            names.append(name)
    return names


def _is_matrix(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.ndim == 2


def different_rows(saved: dict[str, list[float]], present: dict[str, list[float]]) -> list[str]:
    """Names of the weights whose last rows are not the saved ones, up to rounding."""
    return [
        name
        for name in sorted(saved.keys() & present.keys())
        if any(
            abs(a - b) > ROUNDING * abs(a) + SMALLEST for a, b in zip(saved[name], present[name], strict=True)
        )
    ]


def config_on_disk(model: PreTrainedModel) -> PreTrainedConfig | None:
    """The config that the base model was loaded with, if it is on this machine; asks no network."""
    name = getattr(model, "name_or_path", "")
    if not name:
        return None
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None


def added_rows(model: PreTrainedModel) -> int:
    """How many rows the vocabulary has gained since the base model was loaded; 0 where that is unknown."""
    config = config_on_disk(model)
    return 0 if config is None else max(0, model.config.vocab_size - config.vocab_size)


def _is_distributed(model: Any) -> bool:
    """Whether `model` is wrapped for several devices; the second version of FSDP mixes a class in."""
    if isinstance(model, PreTrainedModel):
        return any(ancestor.__name__ == "FSDPModule" for ancestor in type(model).__mro__)
    return isinstance(model, nn.Module) and isinstance(getattr(model, "module", None), nn.Module)


def _check_language_model(model: PreTrainedModel, argument: str) -> None:
    name, config = type(model).__name__, model.config
    if any(isinstance(module, BaseTunerLayer | ModulesToSaveWrapper) for module in model.modules()):
        raise ValueError(
            f"{argument} ({name}) has layers of an adapter inside: take the base model out with "
            "merge_and_unload() or unload(), or load it anew"
        )
    if getattr(config, "is_encoder_decoder", False) or config.get_text_config() is not config:
        raise ValueError(
            f"{argument} must be a decoder-only text model, got {name} (model_type={config.model_type!r})"
        )
    if model.get_output_embeddings() is None or not model.can_generate():
        raise ValueError(
            f"{argument} must be a causal language model, got {name}, whose own output layers would stay "
            "untrained: load it with AutoModelForCausalLM, or adapt a classifier with peft itself"
        )
