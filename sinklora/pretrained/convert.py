"""A GGUF file as a folder in transformers' own format."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def check_gguf() -> None:
    """ImportError naming the extra where the package that reads GGUF files is missing."""
    if find_spec("gguf") is None:
        raise ImportError("reading GGUF files needs the package gguf: pip install 'sinklora[real]'")


def convert_gguf(weights: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write model and tokenizer of a GGUF file to `folder`: config.json, safetensors in `dtype`, tokenizer.

    Quantized weights are dequantized. Raises what `check_gguf` raises.
    """
    check_gguf()
    place = {"gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, **place)
    read = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **place)
    # What was read from GGUF refuses to be saved: the same weights in a model that knows nothing of it.
    config = type(read.config).from_dict(
        {k: v for k, v in read.config.to_dict().items() if k not in ("quantization_config", "_name_or_path")}
    )
    config.dtype = dtype
    with torch.device("meta"):
        plain = type(read)(config)
    plain.load_state_dict({name: x.to(dtype) for name, x in read.state_dict().items()}, assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
