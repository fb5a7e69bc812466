"""What is measured of a model whose weights accelerate keeps elsewhere is what its own weights give."""

import copy
from typing import Any

import accelerate
import pytest
import torch

from all_measures import MEASURES, Measured
from chat_models import chat_base


@pytest.mark.parametrize("measured", MEASURES)
def test_offloaded_weights_change_nothing(measured: Measured) -> None:
    tokenizer = chat_base().tokenizer
    model: Any = copy.deepcopy(chat_base().model)
    model.to(torch.float32)
    expected = measured(model, tokenizer)
    offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device="cpu")
    assert offloaded.device.type == "meta"
    assert measured(offloaded, tokenizer) == expected
