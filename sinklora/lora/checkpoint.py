"""Adapters on disk: saved so that the last good one is never lost, loaded with everything they need."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path

from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from sinklora.attention.patterns import pattern_from_dict
from sinklora.hf.models import remove_pattern, use_pattern
from sinklora.hf.rope import find_transformer, restore_rope
from sinklora.lora.adapted_model import LoraPlusModel, lora_model, wrap
from sinklora.lora.adapter import set_weights
from sinklora.lora.adapter_card import CARD_FILE, write_model_card
from sinklora.lora.adapter_files import (
    CONFIG_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    AdapterState,
    adapter_folder,
    check_base,
    check_files,
    check_lora,
    complete_folder,
    is_plain_name,
    read_config,
    read_state,
)
from sinklora.lora.base_model import (
    check_base_model,
    describe_base,
    different_rows,
    embedding_names,
    last_rows,
)
from sinklora.lora.folder_replacement import replaced_files, valid_folder


def save_adapter(model: PeftModel, directory: str | os.PathLike[str]) -> None:
    """Write the adapters of `model` to `directory`: safetensors weights, peft's configs, and `sinklora.json`.

    An adapter that lies there is replaced as a whole: whenever the call is interrupted, `load_adapter` gives
    the old one or the new one. Other files stay, among them a README.md that a person wrote. One process
    saves at a time.

    TypeError: no PeftModel. ValueError: adapters of other kinds than LoRA, parameters that other processes
    hold (ZeRO-3).
    """
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"model must be a PeftModel (from lora_plus or load_adapter), got {type(model).__name__}"
        )
    for name, config in model.peft_config.items():
        check_lora(config, f"model (adapter {name!r})")
        if not is_plain_name(name):
            raise ValueError(f"adapter {name!r} cannot name a folder: give it a plain name")
    divided = [name for name, p in model.named_parameters() if p.requires_grad and p.numel() == 0]
    if divided:
        raise ValueError(
            f"{divided[0]} is empty here (ZeRO-3 divides it): save inside deepspeed.zero.GatheredParameters"
        )
    target = Path(directory)
    before = _saved_adapters(target)
    with replaced_files(target) as new:
        if (target / CARD_FILE).is_file():
            shutil.copyfile(target / CARD_FILE, new / CARD_FILE)
        model.save_pretrained(str(new), save_embedding_layers=False)
        if not isinstance(model, LoraPlusModel):
            write_model_card(model, new)
            complete_folder(model, new)
    _remove_adapters(target, before - model.peft_config.keys())


def load_adapter(
    base_model: PreTrainedModel, directory: str | os.PathLike[str], *, trainable: bool = False
) -> LoraPlusModel:
    """`base_model` with the adapters from `directory`: same logits bit for bit, RoPE and pattern restored.

    `directory` was written by `save_adapter`, or by `save_pretrained` of a model from `lora_plus`, as the
    Trainer's checkpoints are. The result is in evaluation mode and frozen, or in the base model's mode and
    trainable. A warning tells of embeddings that neither the adapter nor the base model brings, and of a base
    model of the same sizes that is another one.

    TypeError: `base_model` is wrapped. ValueError: it is no causal language model or another one than the
    adapter's; the directory is not a complete adapter, or a file is damaged.
    """
    path = valid_folder(Path(directory))
    state = read_state(path)
    check_files(state, path)
    check_base_model(base_model, "base_model")
    check_base(state, describe_base(base_model), path)
    configs = {name: read_config(adapter_folder(path, name)) for name in state.adapters}
    for config in configs.values():
        config.inference_mode = False
    if state.rope:
        restore_rope(base_model, state.rope)
    model = wrap(base_model, configs)
    for name in configs:
        file = adapter_folder(path, name) / WEIGHTS_FILE
        set_weights(model, load_file(file), str(file), name)
    _activate(model, state)
    if not trainable:
        model.requires_grad_(False).eval()
    if state.pattern is None:
        remove_pattern(base_model)
    else:
        use_pattern(
            model, pattern_from_dict(state.pattern), evaluate_with_pattern=state.evaluate_with_pattern
        )
    _warn_of_another_base(model, state)
    return model


def _activate(model: LoraPlusModel, state: AdapterState) -> None:
    if len(state.active) == 1:
        model.set_adapter(state.active[0])
    elif state.active:
        lora_model(model).set_adapter(state.active)


def _warn_of_another_base(model: LoraPlusModel, state: AdapterState) -> None:
    names = different_rows(state.last_rows, last_rows(model))
    embeddings = [name for name in names if name in embedding_names(find_transformer(model))]
    if len(names) > len(embeddings):
        config = model.active_peft_config
        known = config.base_model_name_or_path
        warnings.warn(
            "the base model is another than the adapter was trained on"
            f"{f' ({known})' if known else ''}: its sizes are the same, its weights are not",
            stacklevel=3,
        )
    elif embeddings:
        warnings.warn(
            f"the last row of {' and '.join(embeddings)} is not the one that the adapter was trained with: "
            "rows that resize_token_embeddings adds are drawn at random, and an adapter brings only what it "
            "trains. Train it with train_output_layer=True (and train_embeddings=True), or save the resized "
            "base model and load that for both",
            stacklevel=3,
        )


def _saved_adapters(target: Path) -> set[str]:
    """Names of the further adapters that lie in a folder; none where there is no readable state."""
    try:
        return set(read_state(valid_folder(target)).adapters) - {"default"}
    except ValueError:
        return set()


def _remove_adapters(target: Path, names: set[str]) -> None:
    for name in names:
        for file in (STATE_FILE, CONFIG_FILE, WEIGHTS_FILE):
            (target / name / file).unlink(missing_ok=True)
        if (target / name).is_dir() and not any((target / name).iterdir()):
            (target / name).rmdir()
