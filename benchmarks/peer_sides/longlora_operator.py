"""LongLoRA's released operator, `llama_attn_replace.py`, taken from a folder that the user names.

It replaces methods of transformers' Llama, so that its process is good for nothing else. It imports
FlashAttention at once, which needs a CUDA device: where there is none, the few functions that it calls are
computed densely (`flash_stand_in`); its path without FlashAttention calls none of them.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

from peer_sides.operator_subject import OperatorSubject
from peer_sides.subject import CannotRunError, Setting

MODULE = "llama_attn_replace"


def open_subject(asked: dict[str, Any], setting: Setting) -> OperatorSubject:
    """The path that `asked["flash"]` says, on the model's weights; `asked["stand_in"]`: see above."""
    if setting.longlora is None:
        raise CannotRunError("not asked for: name the folder of LongLoRA's release with --longlora")
    from transformers.models.llama import modeling_llama

    if asked["stand_in"]:
        from peer_sides.flash_stand_in import provide_flash_attention

        provide_flash_attention()
    sys.path.insert(0, setting.longlora)
    try:
        released: Any = importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        if error.name != "flash_attn":
            raise
        raise CannotRunError(
            "it imports flash_attn at once, which is not installed and needs an NVIDIA card"
        ) from error
    if asked["flash"]:  # what `replace_llama_attn` does once it has found an NVIDIA card
        modeling_llama.LlamaModel._prepare_decoder_attention_mask = released._prepare_decoder_attention_mask
        modeling_llama.LlamaAttention.forward = released.forward_flashattn
    else:
        released.replace_llama_attn(use_flash_attn=False)
    subject = OperatorSubject(llama(Path(setting.model)), setting)
    check_called_as_written(subject)
    return subject


def check_called_as_written(subject: OperatorSubject) -> None:
    """Whether this transformers calls attention as the released one is written. Raises CannotRunError."""
    try:
        subject.laps(warm=True)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        import transformers

        raise CannotRunError(
            f"transformers {transformers.__version__} gives attention {unknown[1]!r}, which it does not take"
        ) from error


def llama(folder: Path) -> Any:
    """The folder's Llama as any version of transformers builds it, in float32."""
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if stored["model_type"] != "llama":
        raise CannotRunError(f"it is for Llama, and the model is a {stored['model_type']}")
    taken = (
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "tie_word_embeddings",
        "vocab_size",
    )
    rope = stored.get("rope_parameters") or {}
    config = LlamaConfig(
        **{name: stored[name] for name in taken}, rope_theta=rope.get("rope_theta", 10000.0), use_cache=False
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    model.tie_weights()
    return model.float()
