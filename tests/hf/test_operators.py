"""How many operators a bounded cache adds to a model's own: on a card, what one row waits for."""

import pytest
import torch
from transformers import DynamicCache

from sinklora.cache.policies import make_policy
from sinklora.evaluate.operator_count import OperatorsPerLayer, operators_per_layer
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import tiny_model

# More than with DynamicCache, a layer, in a prompt and in a decoding step; its own are 40 in bfloat16.
ALLOWED = {
    "full": (2.2, 0.2),
    "local": (6, 0.2),
    "streaming": (6, 0.2),
    "h2o": (float("inf"), 4),
    "replay": (
        float("inf"),
        14,
    ),  # on the CPU, where each of its two key/value heads is attended to by itself
    "snapkv": (float("inf"), 0.8),
    "tova": (float("inf"), 4),
    "expected_attention": (float("inf"), 0.8),
}


@pytest.fixture(scope="module")
def own() -> OperatorsPerLayer:
    return counted(None)


def counted(name: str | None) -> OperatorsPerLayer:
    """Operators with the cache of a policy, or with DynamicCache; as deep as SmolLM2, and narrow."""
    model = tiny_model("llama-gqa", num_hidden_layers=30, max_position_embeddings=256).to(torch.bfloat16)
    budget = None if name == "full" else 0.2

    def make() -> DynamicCache | BudgetCache:
        return DynamicCache() if name is None else BudgetCache(model, make_policy(name, budget))

    return operators_per_layer(model, make, prompt_tokens=128, steps=16)


def test_a_layer_of_the_models_own_is_what_it_was_when_the_limits_were_set(own: OperatorsPerLayer) -> None:
    assert own == pytest.approx((40.7, 40.7), abs=0.1)


@pytest.mark.parametrize("name", ALLOWED)
def test_a_bounded_cache_adds_few_operators(name: str, own: OperatorsPerLayer) -> None:
    prompt, step = (found - mine for found, mine in zip(counted(name), own, strict=True))
    assert prompt <= ALLOWED[name][0] and step <= ALLOWED[name][1]
