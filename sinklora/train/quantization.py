"""QLoRA: a frozen base in 4 bits, through bitsandbytes (arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch


def check_quantization(quantize: str | None) -> None:
    """Raise ImportError without bitsandbytes and ValueError without a CUDA device, before any work."""
    if quantize is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"quantize={quantize!r}: bitsandbytes is not installed; pip install 'sinklora[gpu]', or leave "
            "quantize out"
        )
    if not torch.cuda.is_available():
        raise ValueError(f"quantize={quantize!r}: needs a CUDA device; leave quantize out on this machine")


def quantization_options(quantize: str | None) -> dict[str, Any]:
    """What `from_pretrained` is told: QLoRA's own settings (NF4, twice quantized, computing in bfloat16)."""
    if quantize is None:
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": config, "device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}}
