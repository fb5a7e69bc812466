"""The fused loss against F.cross_entropy of all logits at once."""

import pytest
import torch
import torch.nn.functional as F

from helpers import assert_close
from sinklora.evaluate.memory import TensorMemory
from sinklora.lora.adapter import lora_plus
from sinklora.train.linear_cross_entropy import summed_linear_cross_entropy
from sinklora.train.loss import ChunkedLoss
from tiny_models import tiny_model


@pytest.mark.parametrize("chunk", [1, 7, 40, 1000])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_equals_the_whole(dtype: torch.dtype, atol: float, chunk: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 16, dtype=dtype, requires_grad=True)
    weight = (3 * torch.randn(50, 16, dtype=dtype)).requires_grad_()
    targets = torch.randint(50, (40,))
    targets[::3] = -100
    whole = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    loss = summed_linear_cross_entropy(hidden, weight, targets, chunk)
    assert_close(loss, whole, atol=100 * atol)
    expected = torch.autograd.grad(2 * whole, (hidden, weight))
    for actual, wanted in zip(torch.autograd.grad(2 * loss, (hidden, weight)), expected, strict=True):
        assert_close(actual, wanted, atol=atol, rtol=1e-5)


def test_a_target_that_is_all_but_impossible_has_its_loss() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[0.0], [500.0]])
    assert summed_linear_cross_entropy(hidden, weight, torch.tensor([0]), 1).item() == 500


@pytest.mark.parametrize("autocast", [False, True])
def test_the_models_loss_fused(autocast: bool) -> None:
    """Within bfloat16's rounding under autocast, exact without it; every trained tensor gets its gradient."""
    model = lora_plus(tiny_model("llama-gqa"), rank=2).train()
    ids = torch.randint(3, 60, (2, 24))
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for fused in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = ChunkedLoss(5, fused=fused)(model, ids, ids)
        found.append((loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)])))
    (plain, expected), (loss, actual) = found
    assert_close(loss, plain, atol=1e-6 if not autocast else 1e-3)
    assert (actual - expected).norm() < (1e-5 if not autocast else 0.02) * expected.norm()


def test_the_fused_loss_holds_a_chunk() -> None:
    hidden = torch.randn(512, 8, requires_grad=True)
    weight = torch.randn(4000, 8, requires_grad=True)
    with TensorMemory() as memory:
        summed_linear_cross_entropy(hidden, weight, torch.randint(4000, (512,)), 16).backward()
    assert memory.peak < 512 * 4000 * 4 / 4  # a quarter of all logits
