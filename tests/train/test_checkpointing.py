"""Checkpoints that keep products: the same gradients, and no product of the layers is computed twice."""

from collections.abc import Callable

import pytest
import torch

from helpers import assert_close
from sinklora.evaluate.operator_count import OperatorCount
from sinklora.hf.models import use_pattern
from sinklora.lora.adapter import lora_plus
from sinklora.train.checkpointing import keep_products
from tiny_models import make_batch, tiny_model

LAYERS = 3
# Of a layer of Llama: query, key, value, output, two of the feed-forward network, whose last one no gradient
# needs, and LoRA's first four.
PRODUCTS = 6 + 4


def nothing(model: torch.nn.Module) -> None:
    """Everything is kept."""


def inputs_alone(model) -> None:  # type: ignore[no-untyped-def]
    model.gradient_checkpointing_enable({"use_reentrant": False})


def step(checkpoint: Callable[..., None]) -> tuple[list[torch.Tensor], OperatorCount]:
    """Gradients of a step, and the operators that it took."""
    model = tiny_model("llama-gqa", num_hidden_layers=LAYERS, hidden_size=64, intermediate_size=80)
    use_pattern(model, "sf")
    adapted = lora_plus(model, rank=2).train()
    checkpoint(adapted)
    batch = make_batch("packed")
    with OperatorCount() as count:
        loss = adapted(**batch.inputs, use_cache=False, labels=batch.inputs["input_ids"]).loss
        trained = [p for p in adapted.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, trained)
    return list(found), count


@pytest.mark.parametrize("checkpoint", [inputs_alone, keep_products])
def test_gradients_are_those_without_checkpoints(checkpoint: Callable[..., None]) -> None:
    for actual, expected in zip(step(checkpoint)[0], step(nothing)[0], strict=True):
        assert_close(actual, expected, atol=1e-6, rtol=1e-4)


def test_products_and_attention_are_computed_once() -> None:
    attention = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    whole, again, kept = (
        step(checkpoint)[1].by_name for checkpoint in (nothing, inputs_alone, keep_products)
    )
    assert again["aten.mm.default"] - kept["aten.mm.default"] == LAYERS * PRODUCTS
    assert kept[attention] == whole[attention] < again[attention]
