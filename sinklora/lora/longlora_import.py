"""Import of adapters in the format of LongLoRA's release: two files of `torch.save`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from sinklora.lora.adapter import lora_plus, set_weights

PREFIX = "base_model.model."

CONFIG_FILE, LORA_FILE, TRAINABLE_FILE = "adapter_config.json", "adapter_model.bin", "trainable_params.bin"


def import_longlora(base_model: PreTrainedModel, directory: str | os.PathLike[str]) -> PeftModel:
    """`base_model` with LongLoRA's adapter from `directory`, ready to train, save or merge.

    `adapter_model.bin` holds the LoRA matrices, `trainable_params.bin` the embeddings and norms (named with
    or without peft's prefix), `adapter_config.json` rank and alpha. The files say nothing about RoPE: call
    `extend_context(base_model, length)` first, with the length that the adapter was trained for.

    Only tensors are read (`weights_only=True`). ValueError: a file is missing, or names or shapes do not fit
    the model.
    """
    path = Path(directory)
    missing = [name for name in (CONFIG_FILE, LORA_FILE, TRAINABLE_FILE) if not (path / name).is_file()]
    if missing:
        raise ValueError(f"{path} is not an adapter in LongLoRA's format: {', '.join(missing)} missing")
    config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    _check_config(config, path)
    weights = {name.replace(".default.", "."): value for name, value in _load(path / LORA_FILE).items()}
    weights |= {
        PREFIX + name.removeprefix(PREFIX): value for name, value in _load(path / TRAINABLE_FILE).items()
    }
    _check_vocabulary(weights, base_model, path)
    model = lora_plus(
        base_model, rank=config["r"], alpha=config["lora_alpha"], dropout=config.get("lora_dropout", 0.0)
    )
    set_weights(model, weights, str(path))
    return model


def _load(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


def _check_config(config: dict[str, Any], path: Path) -> None:
    if "r" not in config or "lora_alpha" not in config:
        raise ValueError(f"{path / CONFIG_FILE} must give r and lora_alpha")
    unsupported = [key for key in ("use_rslora", "use_dora", "fan_in_fan_out") if config.get(key)]
    if unsupported or config.get("bias", "none") != "none":
        raise ValueError(
            f"{path / CONFIG_FILE} uses {unsupported or 'bias'}, which LongLoRA's adapters do not"
        )


def _check_vocabulary(weights: dict[str, Tensor], base_model: PreTrainedModel, path: Path) -> None:
    rows = next(base_model.get_input_embeddings().parameters()).shape[0]
    for name, value in weights.items():
        if "embed" in name and value.ndim == 2 and value.shape[0] != rows and "lora_" not in name:
            raise ValueError(
                f"{name} in {path} has {value.shape[0]} rows, the model's vocabulary {rows}: LongLoRA adds "
                "special tokens before training; call "
                f"base_model.resize_token_embeddings({value.shape[0]}) first"
            )
