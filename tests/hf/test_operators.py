"""How many operators a layer of a model dispatches with a cache: on a card, what one row waits for."""

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from helpers import rest_slow
from sinklora.cache.policies import make_policy
from sinklora.evaluate.operator_count import OperatorsPerLayer, operators_per_layer
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import tiny_model

# In a prompt and in a decoding step, at most; with DynamicCache a model in bfloat16 dispatches 40.
MOST = {
    "full": (42, 40),
    "local": (46, 40),
    "streaming": (46, 40),
    "h2o": (float("inf"), 46),
    # On the CPU, where each of its two key/value heads is attended to by itself.
    "replay": (float("inf"), 55),
    "snapkv": (float("inf"), 41.5),
    "tova": (float("inf"), 45),
    "expected_attention": (float("inf"), 41.5),
}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """As deep as SmolLM2, and narrow."""
    return tiny_model("llama-gqa", num_hidden_layers=30, max_position_embeddings=256).to(torch.bfloat16)


def counted(model: PreTrainedModel, name: str | None) -> OperatorsPerLayer:
    """Operators with the cache of a policy, or with DynamicCache.

    What the model does once, whatever the cache (0.7 a layer), counts as well.
    """
    budget = None if name == "full" else 0.2

    def make() -> DynamicCache | BudgetCache:
        return DynamicCache() if name is None else BudgetCache(model, make_policy(name, budget))

    return operators_per_layer(model, make, prompt_tokens=128, steps=16)


def test_a_layer_of_the_models_own_is_what_it_was_when_the_limits_were_set(model: PreTrainedModel) -> None:
    assert counted(model, None) == pytest.approx((40.7, 40.7), abs=0.1)


@pytest.mark.parametrize("name", rest_slow(MOST, always=4))
def test_a_layer_dispatches_few_operators(model: PreTrainedModel, name: str) -> None:
    prompt, step = counted(model, name)
    assert prompt <= MOST[name][0] and step <= MOST[name][1]
