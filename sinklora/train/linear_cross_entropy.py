"""Cross-entropy of a linear layer's outputs, in chunks of rows, the gradients made in the forward pass.

Nothing is computed twice and no tensor of [rows, classes] is held, as in Liger's fused loss (arXiv
2410.10989, section 3.2). `torch.nn.functional.linear_cross_entropy` does the same from PyTorch 2.13 on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -100  # targets that are not counted, as in F.cross_entropy


def summed_linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """Sum over rows of `-log_softmax(hidden @ weight.T)[target]`, a float32 scalar at least.

    `hidden` [N, W], `weight` [V, W], `targets` int64 [N], those of -100 not counted. Products are taken in
    the dtype of `hidden`; softmax, losses and the sum of the weight's gradient in float32 at least. Gradients
    of gradients are refused.
    """
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, chunk)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        precise = torch.promote_types(hidden.dtype, torch.float32)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        to_weight = torch.zeros_like(weight, dtype=precise) if needs_weight else None
        own = weight.to(hidden.dtype)
        total = hidden.new_zeros((), dtype=precise)
        for begin in range(0, hidden.shape[0], chunk):
            rows = slice(begin, begin + chunk)
            logits = hidden[rows] @ own.T
            total += _loss_then_gradient(logits, targets[rows])
            if to_hidden is not None:
                to_hidden[rows] = logits @ own
            if to_weight is not None:
                to_weight += logits.T @ hidden[rows]
        ctx.save_for_backward(to_hidden, None if to_weight is None else to_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if x is None else x * upstream[0].to(x.dtype) for x in ctx.saved_tensors]
        return (*scaled, None, None)


def _loss_then_gradient(logits: Tensor, targets: Tensor) -> Tensor:
    """The summed loss of rows of logits, which are then replaced by its gradients."""
    counted, index = (targets != IGNORED).unsqueeze(1), targets.clamp(min=0).unsqueeze(1)
    precise = torch.promote_types(logits.dtype, torch.float32)
    logarithms = logits.log_softmax(-1, dtype=precise)
    loss = -(logarithms.gather(1, index) * counted).sum()
    shares = logarithms.exp_()
    shares.scatter_add_(1, index, -torch.ones_like(index, dtype=precise))
    logits.copy_(shares.mul_(counted))
    return loss
