"""Adapters whose every trained number was moved, and the logits by which they are compared."""

import torch
from peft import PeftModel
from torch import Tensor, nn

from tiny_models import make_batch

BATCH = make_batch("plain")


def logits_of(model: nn.Module) -> Tensor:
    return model(**BATCH.inputs, use_cache=False).logits


def randomized(model: PeftModel, seed: int = 5) -> PeftModel:
    """As after training: every trainable number moved, so that a lost or swapped tensor shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
