"""Calls with a BudgetCache that fail on their way: what all layers have read goes on, else it is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from cache_simulation import run, tokens
from helpers import assert_close
from sinklora.cache import sharing
from sinklora.cache.h2o import H2O
from sinklora.cache.layer import BudgetLayer
from sinklora.cache.policies import CachePolicy
from sinklora.cache.replay import Replay
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.budget_cache_layer import BudgetCacheLayer
from tiny_models import tiny_model

POLICIES = {
    "h2o": H2O(8),
    "streaming": StreamingLLM(8),
    "replay-layer": Replay(8, sink_tokens=1, share="layer"),
    "replay-model": Replay(8, sink_tokens=1),
}
CALLS = [12, *[1] * 4, 5, *[1] * 3]
WHERE = {"prompt": 0, "decoded": 2, "turn": 5}

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture(name="no_gradients")
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa").double()


IDS = tokens(2, sum(CALLS))
PARTS = IDS.split(CALLS, 1)


def failing(function: Callable[..., Any], after: int = 0) -> Callable[..., Any]:
    """The function, which runs out of memory after its work, after so many calls that did not."""
    calls = []

    def fails(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        calls.append(1)
        if len(calls) == after + 1:
            raise RuntimeError("out of memory")
        return result

    return fails


def fail(model: PreTrainedModel, cache: BudgetCache, part: torch.Tensor) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        model(part, past_key_values=cache)


@pytest.mark.parametrize("place", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_tokens_of_a_call_that_fails_behind_its_last_attention_are_read(
    model: PreTrainedModel, policy: CachePolicy, place: int
) -> None:
    expected = run(BudgetCache(model, policy), model, IDS, CALLS).split(CALLS, 1)
    cache = BudgetCache(model, policy)
    for number, part in enumerate(PARTS):
        if number == place:
            hook = model.model.norm.register_forward_hook(failing(lambda *_: None))
            fail(model, cache, part)
            hook.remove()
        else:
            assert_close(model(part, past_key_values=cache).logits, expected[number], atol=1e-9)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("place", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_call_that_fails_in_an_attention_is_refused_until_the_cache_is_reset(
    model: PreTrainedModel,
    policy: CachePolicy,
    place: int,
    layer: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = BudgetCache(model, policy)
    for part in PARTS[:place]:
        model(part, past_key_values=cache)
    decoded = place == WHERE["decoded"]
    kind, name = (BudgetLayer, "_decode") if decoded else (BudgetCacheLayer, "attend_and_grow")
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, failing(getattr(kind, name), after=layer))
        fail(model, cache, PARTS[place])
    for _ in range(2):
        with pytest.raises(ValueError, match="ended half-way"):
            model(PARTS[place + 1], past_key_values=cache)
    cache.reset()
    expected = run(BudgetCache(model, policy), model, IDS, CALLS)
    assert_close(run(cache, model, IDS, CALLS), expected, atol=1e-9)


def test_slots_that_could_not_be_shared_are_shared_by_the_next_call(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = POLICIES["replay-model"]
    expected = run(BudgetCache(model, policy), model, IDS, CALLS)
    cache = BudgetCache(model, policy)
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "pack", failing(sharing.pack))
        fail(model, cache, PARTS[0])
    assert_close(run(cache, model, IDS[:, CALLS[0] :], CALLS[1:]), expected[:, CALLS[0] :], atol=1e-9)


def test_slots_that_were_shared_in_part_are_refused(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = BudgetCache(model, POLICIES["replay-model"])
    with monkeypatch.context() as patch:
        patch.setattr(sharing, "pack", failing(sharing.pack, after=1))
        fail(model, cache, PARTS[0])
    with pytest.raises(ValueError, match="ended half-way"):
        model(PARTS[1], past_key_values=cache)


def test_a_call_that_was_refused_before_anything_was_read_is_none(model: PreTrainedModel) -> None:
    expected = run(BudgetCache(model, POLICIES["h2o"]), model, IDS, CALLS)
    cache = BudgetCache(model, POLICIES["h2o"])
    model.train()
    with pytest.raises(ValueError, match=r"call model\.eval"):
        model(PARTS[0], past_key_values=cache)
    model.eval()
    assert_close(run(cache, model, IDS, CALLS), expected, atol=1e-9)
