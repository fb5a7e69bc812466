"""How many operators a model dispatches: what a GPU has to launch, counted on any machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from sinklora.hf.device import input_device

VIEWS = (torch.ops.aten._unsafe_view.default,)  # a view, though its schema does not say so


class OperatorCount(TorchDispatchMode):
    """Counts the operators dispatched within its `with` block, by name, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func not in VIEWS:
            self.by_name[str(func)] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All of them."""
        return self.by_name.total()


class OperatorsPerLayer(NamedTuple):
    """Operators of a prompt, and of a decoding step on average: of the whole model, over its layers.

    What a model does once (embedding, rotary angles, last norm, head: some 20 operators) is in it.
    """

    prompt: float
    decoding: float


@torch.no_grad()
def operators_per_layer(
    model: PreTrainedModel,
    make_cache: Callable[[], Cache],
    *,
    prompt_tokens: int,
    steps: int = 64,
    batch: int = 1,
) -> OperatorsPerLayer:
    """Count the operators of a prompt and of `steps` decoding steps with a cache, per layer of the model."""
    layers: int = model.config.num_hidden_layers
    ids = torch.ones(batch, prompt_tokens, dtype=torch.long, device=input_device(model))
    cache = make_cache()
    with OperatorCount() as prompt:
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    with OperatorCount() as decoding:
        for _ in range(steps):
            model(ids[:, :1], past_key_values=cache, use_cache=True)
    return OperatorsPerLayer(prompt.total / layers, decoding.total / layers / steps)
