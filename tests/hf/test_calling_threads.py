"""One model in several threads: a call that would change what another one computes is refused, and why."""

import copy
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cache_simulation import tokens
from sinklora.cache.h2o import H2O
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import tiny_model

IDS = tokens(2, 12)


class Waiting(nn.Module):
    """A layer that, in other threads than the one that made it, waits in the middle of a call."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.home = layer, threading.get_ident()
        self.reached, self.may_go_on = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        if threading.get_ident() != self.home:
            self.reached.set()
            assert self.may_go_on.wait(30)
        y: Tensor = self.layer(x)
        return y


@torch.no_grad()
def call(model: nn.Module, cached: bool) -> Tensor:
    logits: Tensor = model(IDS, past_key_values=BudgetCache(model, H2O(8)) if cached else None).logits
    return logits


@contextmanager
def called_elsewhere(model: PreTrainedModel, cached: bool) -> Iterator[Future[Tensor]]:
    """While another thread is half-way through a call of `model`."""
    layer = model.model.layers[0]
    waiting = layer.mlp = Waiting(layer.mlp)
    with ThreadPoolExecutor(1) as threads:
        outcome = threads.submit(call, model, cached)
        assert waiting.reached.wait(30)
        try:
            yield outcome
        finally:
            waiting.may_go_on.set()


@pytest.mark.parametrize(("theirs", "ours"), [(True, True), (True, False), (False, True)])
def test_a_call_beside_one_with_a_cache_is_refused_and_disturbs_nothing(theirs: bool, ours: bool) -> None:
    model = tiny_model("llama-gqa")
    expected = {cached: call(model, cached) for cached in (True, False)}
    with called_elsewhere(model, theirs) as outcome:
        for _ in range(2):
            with pytest.raises(ValueError, match=r"another thread is calling this model.*copy\.deepcopy"):
                call(model, ours)
    assert torch.equal(outcome.result(), expected[theirs])
    assert torch.equal(call(model, ours), expected[ours])
    assert model.config._attn_implementation == "sdpa"


def test_calls_without_a_cache_stand_beside_each_other() -> None:
    model = tiny_model("llama-gqa")
    expected = call(model, cached=False)
    BudgetCache(model, H2O(8))
    with called_elsewhere(model, cached=False) as outcome:
        assert torch.equal(call(model, cached=False), expected)
    assert torch.equal(outcome.result(), expected)


@pytest.mark.parametrize("theirs", [True, False])
def test_copies_are_called_beside_each_other(theirs: bool) -> None:
    model = tiny_model("llama-gqa")
    expected = {cached: call(model, cached) for cached in (True, False)}
    other = copy.deepcopy(model)
    with called_elsewhere(model, theirs) as outcome:
        assert torch.equal(call(other, cached=True), expected[True])
    assert torch.equal(outcome.result(), expected[theirs])


class Interrupting(nn.Module):
    """A layer that ends the call as Ctrl-C does: PyTorch runs no hooks then."""

    def forward(self, x: Tensor) -> Tensor:
        raise KeyboardInterrupt


@pytest.mark.parametrize("cached", [True, False])
def test_an_interrupted_call_is_over_for_other_threads(cached: bool) -> None:
    model = tiny_model("llama-gqa")
    expected = {cached: call(model, cached) for cached in (True, False)}
    layer = model.model.layers[0]
    layer.mlp, whole = Interrupting(), layer.mlp
    with pytest.raises(KeyboardInterrupt):
        call(model, cached)
    layer.mlp = whole
    with ThreadPoolExecutor(1) as threads:
        for ours in (True, False):
            assert torch.equal(threads.submit(call, model, ours).result(), expected[ours])
