"""The models that retrieval and LongBench ask: the base, its interpolation, its extensions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from sinklora.hf.device import default_device
from sinklora.lora.adapter import merge_adapter
from sinklora.pretrained.fetch import model_path
from sinklora.reproduction.names import BASE
from sinklora.train.spec import base_hash

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelUnderTest:
    """A model to be asked: how it is called, what identifies it, how it is loaded, and the type (one of
    DTYPES) that its weights then get.
    """

    name: str
    seed: int | None
    key: dict[str, Any]
    load: Callable[[], nn.Module]
    dtype: str = "float32"

    @property
    def identity(self) -> dict[str, Any]:
        """What its answers are stored under; measurements made before there was a dtype are found."""
        return self.key if self.dtype == "float32" else {**self.key, "dtype": self.dtype}

    def ready(self) -> Any:
        """The model itself: adapters merged, on the device, in evaluation mode."""
        loaded = self.load()
        model: Any = merge_adapter(loaded) if isinstance(loaded, PeftModel) else loaded
        for weight in model.parameters():  # buffers keep their type: rotary angles need float32
            weight.data = weight.data.to(getattr(torch, self.dtype))
        return model.to(default_device()).eval()


def unextended_base(base: str) -> ModelUnderTest:
    """The model as it is, without any extension."""
    return ModelUnderTest(
        BASE, None, {"base_sha256": base_hash(base), "context": "as trained"}, partial(_load, base)
    )


def _load(base: str) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(model_path(base), dtype=torch.float32)
    return model


def interpolated_name(pattern: str, further: int) -> str:
    """How an extension is called whose positions are interpolated further without training."""
    return f"{pattern}, interpolated to {further}"
