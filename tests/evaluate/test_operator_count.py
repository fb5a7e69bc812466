"""Operators counted by hand."""

import torch
from transformers.cache_utils import DynamicCache

from sinklora.evaluate.operator_count import OperatorCount, operators_per_layer
from tiny_models import tiny_model


def test_views_are_no_operators() -> None:
    x = torch.ones(2, 3)
    with OperatorCount() as count:
        y = x.t().reshape(3, 2)[:, :1] + 1
        y.mul_(2)
    assert count.by_name == {"aten.add.Tensor": 1, "aten.mul_.Tensor": 1}


def test_a_layer_of_llama_by_hand() -> None:
    """2 norms of 6, 7 products, 2 rotations of 5, attention, 2 of the cache, 2 of the activation, 2 sums."""
    counts = []
    for layers in (2, 3):
        model = tiny_model("llama-gqa", num_hidden_layers=layers)
        found = operators_per_layer(model, DynamicCache, prompt_tokens=8, steps=4)
        counts.append([round(number * layers) for number in found])
    assert [b - a for a, b in zip(*counts, strict=True)] == [36, 36]  # 40 in bfloat16: 4 casts in norms
