"""Adapters: everything a user needs of them, and how they lie on disk.

A directory holds peft's two files and `sinklora.json`, which remembers RoPE, pattern and base model. That
file is written last: a directory without it is not a complete adapter.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sinklora.attention.patterns import pattern_from_dict
from sinklora.hf.models import current_pattern, evaluates_with_pattern, use_pattern
from sinklora.hf.rope import find_transformer, restore_rope, rope_state
from sinklora.lora.adapter import set_weights, wrap

STATE_FILE = "sinklora.json"

WEIGHTS_FILE = "adapter_model.safetensors"

FORMAT = 1

BASE_KEYS = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


def save_adapter(model: PeftModel, directory: str | os.PathLike[str]) -> None:
    """Write the adapter of `model` to `directory`: safetensors weights, peft's config, and `sinklora.json`.

    An interrupted call leaves no directory that `load_adapter` would accept. Raises ValueError for parameters
    that other processes hold (ZeRO-3).
    """
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"model must be a PeftModel (from lora_plus or load_adapter), got {type(model).__name__}"
        )
    divided = [name for name, p in model.named_parameters() if p.requires_grad and p.numel() == 0]
    if divided:
        raise ValueError(
            f"{divided[0]} is empty here (ZeRO-3 divides it): save inside deepspeed.zero.GatheredParameters"
        )
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    (target / STATE_FILE).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as staging:
        # Trained embeddings are saved anyway; "auto" would ask the network about the base model.
        model.save_pretrained(staging, save_embedding_layers=False)
        (Path(staging) / STATE_FILE).write_text(json.dumps(_state(model), indent=2) + "\n", encoding="utf-8")
        names = sorted(path.name for path in Path(staging).iterdir() if path.name != STATE_FILE)
        for name in [*names, STATE_FILE]:
            os.replace(Path(staging) / name, target / name)


def load_adapter(
    base_model: PreTrainedModel, directory: str | os.PathLike[str], *, trainable: bool = False
) -> PeftModel:
    """`base_model` with the adapter from `directory`: same logits bit for bit, RoPE and pattern restored.

    The result is in evaluation mode and frozen, or in the base model's mode and trainable. ValueError: the
    directory is not a complete adapter, or belongs to another base model.
    """
    path = Path(directory)
    state = _read_state(path)
    if not isinstance(base_model, PreTrainedModel):
        raise TypeError(f"base_model must be a transformers PreTrainedModel, got {type(base_model).__name__}")
    _check_base(state["base"], _base(base_model), path)
    config = PeftConfig.from_pretrained(str(path))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{path} holds an adapter of type {config.peft_type}, expected LoRA")
    config.inference_mode = False
    if state["rope"]:
        restore_rope(base_model, state["rope"])
    model = wrap(base_model, config)
    set_weights(model, load_file(path / WEIGHTS_FILE), str(path))
    if not trainable:
        model.requires_grad_(False).eval()
    if state["pattern"] is not None:
        use_pattern(
            model, pattern_from_dict(state["pattern"]), evaluate_with_pattern=state["evaluate_with_pattern"]
        )
    return model


def _state(model: PeftModel) -> dict[str, Any]:
    pattern = current_pattern(model)
    return {
        "format": FORMAT,
        "base": _base(find_transformer(model)),
        "rope": rope_state(model),
        "pattern": None if pattern is None else pattern.to_dict(),
        "evaluate_with_pattern": evaluates_with_pattern(model),
    }


def _read_state(path: Path) -> dict[str, Any]:
    missing = [
        name for name in (STATE_FILE, "adapter_config.json", WEIGHTS_FILE) if not (path / name).is_file()
    ]
    if missing:
        raise ValueError(
            f"{path} is not a complete adapter of sinklora: {', '.join(missing)} missing "
            "(for LongLoRA's two-file format use import_longlora)"
        )
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{path / STATE_FILE} has format {state.get('format')!r}, this version reads {FORMAT}"
        )
    return state


def _base(model: PreTrainedModel) -> dict[str, Any]:
    return {key: getattr(model.config, key, None) for key in BASE_KEYS}


def _check_base(saved: dict[str, Any], given: dict[str, Any], path: Path) -> None:
    different = [
        f"{key}={saved[key]!r} there, {given[key]!r} here" for key in BASE_KEYS if saved[key] != given[key]
    ]
    if different:
        raise ValueError(f"the adapter in {path} belongs to another base model: {'; '.join(different)}")
