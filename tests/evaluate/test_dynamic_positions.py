"""Under `dynamic` positions nothing that is measured depends on longer inputs that the model met before."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from all_measures import IDS, MEASURES, Measured
from chat_models import chat_base
from sinklora.hf.rope import extend_context

OWN, FACTOR = 64, 64  # trained for so few tokens that every input here is scaled


@pytest.fixture(scope="module")
def fresh() -> PreTrainedModel:
    options = {"max_position_embeddings": OWN, "use_cache": True, "dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained("data/base", **options)
    return extend_context(model.eval(), OWN * FACTOR, method="dynamic")


@pytest.fixture(scope="module")
def used(fresh: PreTrainedModel) -> PreTrainedModel:
    """The same model, which has met a long input."""
    model = copy.deepcopy(fresh)
    with torch.inference_mode():
        model(torch.from_numpy(IDS[None]))
    return model


@pytest.mark.parametrize("measured", MEASURES)
def test_a_longer_input_before_changes_nothing(
    fresh: PreTrainedModel, used: PreTrainedModel, measured: Measured
) -> None:
    tokenizer = chat_base().tokenizer
    alone, behind = measured(copy.deepcopy(fresh), tokenizer), measured(copy.deepcopy(used), tokenizer)
    assert behind == alone
