"""Models whose weights accelerate keeps elsewhere, on `meta` between their calls, and weights of nowhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from cache_simulation import tokens
from sinklora.attention.patterns import SF
from sinklora.cache.replay import Replay
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.models import current_pattern, use_pattern
from sinklora.hf.rope import extend_context, forget_longest_input
from tiny_models import tiny_model

IDS = tokens(2, 20)
OFFLOADS: dict[str, Callable[[PreTrainedModel, Path], Any]] = {
    "cpu": lambda model, folder: accelerate.cpu_offload(model, execution_device="cpu"),
    "disk": lambda model, folder: accelerate.disk_offload(model, str(folder), execution_device="cpu"),
}


@pytest.fixture(params=OFFLOADS)
def offloaded(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    model = tiny_model("llama-gqa")
    OFFLOADS[request.param](model, tmp_path)
    assert model.device.type == "meta"
    return model


@torch.no_grad()
def logits(model: PreTrainedModel, **inputs: object) -> torch.Tensor:
    answer: torch.Tensor = model(IDS, **inputs).logits
    return answer


def test_a_pattern_is_put_on_an_offloaded_model(offloaded: PreTrainedModel) -> None:
    expected = logits(use_pattern(tiny_model("llama-gqa"), SF).train(), use_cache=False)
    assert current_pattern(use_pattern(offloaded, SF)) == SF
    assert torch.equal(logits(offloaded.train(), use_cache=False), expected)


@pytest.mark.parametrize(("policy", "positions"), [(Replay(8), "text"), (StreamingLLM(8), "cache")], ids=str)
def test_caches_that_turn_keys_read_through_an_offloaded_model(
    offloaded: PreTrainedModel, policy: Any, positions: str
) -> None:
    model, answers = tiny_model("llama-gqa"), []
    for each in (model, offloaded):
        cache = BudgetCache(each, policy, positions=positions)
        answers += [logits(each, past_key_values=cache), logits(each, past_key_values=cache)]
    assert torch.equal(answers[0], answers[2]) and torch.equal(answers[1], answers[3])


def test_the_longest_input_of_an_offloaded_model_is_forgotten(offloaded: PreTrainedModel) -> None:
    extend_context(offloaded, 256, "dynamic")
    expected = logits(offloaded)
    with torch.no_grad():
        offloaded(tokens(1, 100))
        forget_longest_input(offloaded)
    assert torch.equal(logits(offloaded), expected)


def test_weights_that_are_nowhere_are_named() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_model("llama-gqa").config)
    with pytest.raises(ValueError, match=r"weights of .* are on meta.* or pass probe=False"):
        use_pattern(model, SF)
    assert current_pattern(use_pattern(model, SF, probe=False)) == SF
    for probe in (True, False):
        with pytest.raises(ValueError, match=r"policy=.*rotary position embeddings are on meta"):
            BudgetCache(model, Replay(8), probe=probe)
