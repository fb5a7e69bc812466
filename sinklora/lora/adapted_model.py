"""A model with LoRA+ adapters: peft's, but what it saves and what it merges into stands by itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, LoraModel, PeftConfig, PeftModel, PeftModelForCausalLM
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from sinklora.lora.adapter_card import write_model_card
from sinklora.lora.adapter_files import complete_folder
from sinklora.lora.folder_replacement import finish_replacement
from sinklora.lora.trained_modules import is_tied


class LoraPlusModel(PeftModelForCausalLM):
    """peft's model of a causal language model, made by `lora_plus` and `load_adapter`.

    `save_pretrained`, and so the Trainer's checkpoints and `save_model`, adds what `load_adapter` needs:
    RoPE, pattern and base model. `merge_and_unload` and `unload` give a model in the base model's dtypes.
    """

    def save_pretrained(
        self,
        save_directory: str,
        safe_serialization: bool = True,
        selected_adapters: list[str] | None = None,
        save_embedding_layers: str | bool = "auto",
        is_main_process: bool = True,
        path_initial_model_for_weight_conversion: str | None = None,
        **options: Any,
    ) -> None:
        """Write as peft does, then `sinklora.json`; `save_adapter` also keeps the last good files."""
        if is_main_process:
            finish_replacement(Path(save_directory))
        super().save_pretrained(
            save_directory,
            safe_serialization=safe_serialization,
            selected_adapters=selected_adapters,
            # Trained embeddings are saved anyway; "auto" would ask the network about the base model.
            save_embedding_layers=False if save_embedding_layers == "auto" else save_embedding_layers,
            is_main_process=is_main_process,
            path_initial_model_for_weight_conversion=path_initial_model_for_weight_conversion,
            **options,
        )
        if is_main_process:
            complete_folder(self, Path(save_directory), selected_adapters)

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: PeftConfig,
        low_cpu_mem_usage: bool = False,
        autocast_adapter_dtype: bool = True,
    ) -> None:
        """A further adapter, as peft adds it; tied embeddings are trained together, its numbers are float32.

        `load_adapter` of peft comes this way. Without `autocast_adapter_dtype` they have the model's dtypes.
        """
        known = [getattr(config, "modules_to_tie", None) for config in self.peft_config.values()]
        with warnings.catch_warnings():
            if getattr(peft_config, "ensure_weight_tying", False) and any(known):
                # peft sees what is tied only before it is first wrapped: it notes it in that adapter's
                # config, and warns here.
                cast(Any, peft_config).modules_to_tie = next(filter(None, known))
                warnings.filterwarnings("ignore", "You have requested `ensure_weight_tying`, but no tied")
            super().add_adapter(adapter_name, peft_config, low_cpu_mem_usage, autocast_adapter_dtype)
        if autocast_adapter_dtype:
            _compute_in_float32(self)

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write a card that says what the adapter holds and how to open it; a person's own text stays."""
        write_model_card(self, Path(output_dir))

    def merge_and_unload(self, *arguments: Any, **options: Any) -> PreTrainedModel:
        """The base model with the adapter folded in, in its own dtypes, without peft."""
        originals = original_layers(self)
        return in_base_dtypes(lora_model(self).merge_and_unload(*arguments, **options), originals)

    def unload(self) -> PreTrainedModel:
        """The base model without LoRA, in its own dtypes; as in peft, layers trained in full stay trained."""
        originals = original_layers(self)
        return in_base_dtypes(lora_model(self).unload(), originals)

    def tie_weights(self, *unused: Any, **unused_options: Any) -> None:
        """Do nothing: tied embeddings stay tied under peft, and transformers would replace peft's layers."""


def wrap(model: PreTrainedModel, configs: dict[str, LoraConfig]) -> LoraPlusModel:
    """`model` with the new adapters that `configs` describe, the first active; their numbers are float32."""
    for config in configs.values():
        config.base_model_name_or_path = getattr(model, "name_or_path", None) or None
    (first, config), *others = configs.items()
    wrapped = LoraPlusModel(model, config, first)
    for name, further in others:
        wrapped.add_adapter(name, further)
    _compute_in_float32(wrapped)
    return wrapped


def _compute_in_float32(wrapped: PeftModel) -> None:
    """Make the numbers of all adapters float32, and let layers trained in full take and give other dtypes."""
    for name, parameter in wrapped.named_parameters():
        if ".lora_" in name or ".modules_to_save." in name:
            parameter.data = parameter.data.float()
    for layer in saved_layers(wrapped).values():
        # A float32 layer inside a half-precision model would hand float32 to layers that cannot take it.
        has_hooks = _to_weight_dtype in layer._forward_pre_hooks.values()
        if layer.original_module.weight.dtype != torch.float32 and not has_hooks:
            layer.register_forward_pre_hook(_to_weight_dtype)
            layer.register_forward_hook(_to_model_dtype)


def lora_model(model: PeftModel) -> LoraModel:
    """The layer of peft below `model` that holds LoRA."""
    return cast(LoraModel, model.base_model)


def saved_layers(model: nn.Module) -> dict[str, ModulesToSaveWrapper]:
    """The layers that an adapter trains in full, by their names in `model`."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)
    }


def original_layers(model: PeftModel) -> dict[str, nn.Module]:
    """The base model's own layers in the places of those that are trained in full, by name."""
    return {name: layer.original_module for name, layer in saved_layers(model.get_base_model()).items()}


def in_base_dtypes(unwrapped: nn.Module, originals: dict[str, nn.Module]) -> PreTrainedModel:
    """`unwrapped`, as peft leaves it, with fully trained layers in the dtypes and classes of `originals`."""
    merged = cast(PreTrainedModel, unwrapped)
    for name, original in originals.items():
        merged.get_submodule(name).to(next(original.parameters()).dtype)
    if is_tied(merged):
        stand_in = merged.get_output_embeddings()  # peft's, with its sizes exchanged
        for name, original in originals.items():
            if merged.get_submodule(name) is stand_in:
                original.weight = stand_in.weight
                merged.set_submodule(name, original)
    return merged


def _to_weight_dtype(layer: ModulesToSaveWrapper, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # Only an output layer needs it: norms take any dtype, embeddings take integers.
    first = inputs[0]
    if first.is_floating_point() and isinstance(layer.original_module, nn.Linear):
        first = first.to(layer.weight.dtype)
    return (first, *inputs[1:])


def _to_model_dtype(layer: ModulesToSaveWrapper, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.to(layer.original_module.weight.dtype)
