"""Models whose cache has so many slots that compiled operators decode over heads that share them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cache_simulation import run
from helpers import assert_close
from sinklora.cache.policies import CachePolicy
from sinklora.cache.ragged_attention_cpu import SLOTS_WORTH_COMPILING
from sinklora.cache.ragged_step import RaggedStep
from sinklora.cache.replay import Replay
from sinklora.cache.snapkv import SnapKV
from sinklora.evaluate.operator_count import OperatorCount
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import VOCABULARY, tiny_model

ROWS, BUDGET, LAYERS = 4, 80, 8  # with two heads a layer
STEPS = 12
OPERATORS = ("sinklora.ragged_attention.default", "sinklora.lowest_slots.default")


def model() -> Any:
    return tiny_model("llama-gqa", num_hidden_layers=LAYERS, max_position_embeddings=512)


def some_tokens(length: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (ROWS, length))


POLICIES: dict[str, CachePolicy] = {
    "model": Replay(BUDGET, share="model"),
    "layer": Replay(BUDGET, share="layer"),
    "snapkv": SnapKV(BUDGET, share="model"),
}


@torch.no_grad()
def logits(cache: BudgetCache, model: Any, ids: Tensor, real: Tensor) -> Tensor:
    """Logits [rows, steps, vocabulary] of tokens after a padded prompt, decoded one by one."""
    prompt = real.shape[1]
    model(ids[:, :prompt], attention_mask=real, past_key_values=cache)
    return run(cache, model, ids[:, prompt:], [1] * STEPS)


@pytest.mark.parametrize("shortest", [130, 75])  # full rows, and two that still fill their slots
@pytest.mark.parametrize("name", POLICIES)
def test_decoding_by_compiled_operators_is_that_in_double_precision(name: str, shortest: int) -> None:
    ids, real, policy = some_tokens(130 + STEPS), torch.ones(ROWS, 130, dtype=torch.long), POLICIES[name]
    real[2:, : 130 - shortest] = 0
    rounded, exact = model(), model().double()
    caches = BudgetCache(rounded, policy), BudgetCache(exact, policy)
    with OperatorCount() as counted:
        found = logits(caches[0], rounded, ids, real)
    assert [counted.by_name[operator] for operator in OPERATORS] == [STEPS * LAYERS, STEPS]
    assert_close(found, logits(caches[1], exact, ids, real), atol=2e-4)
    for layer in range(LAYERS):
        kept, truly = (cache.kept_positions(layer) for cache in caches)
        assert kept.tolist() == truly.tolist()


def test_many_slots_are_looked_at_by_two_operators_alone() -> None:
    ids, small = some_tokens(160), model()
    for budget, expected in ((BUDGET, [LAYERS, 1]), (BUDGET // 2, [0, 0])):
        cache = BudgetCache(small, Replay(budget))
        with torch.no_grad():
            small(ids, past_key_values=cache)
            assert isinstance(cache.budget_layers[0].step, RaggedStep)
            slots = sum(len(layer.packed().keys) for layer in cache.budget_layers)
            assert (slots >= SLOTS_WORTH_COMPILING) == (expected[0] > 0)
            with OperatorCount() as counted:
                small(ids[:, :1], past_key_values=cache)
        assert [counted.by_name[name] for name in OPERATORS] == expected


WITHOUT_A_COMPILER = """
import logging, torch
logging.basicConfig(level=logging.DEBUG)
from sinklora.cache.replay import Replay
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import tiny_model
model = tiny_model("llama-gqa", num_hidden_layers=8, max_position_embeddings=512)
cache, ids = BudgetCache(model, Replay(80)), torch.ones(4, 130, dtype=torch.long)
with torch.no_grad():
    model(ids, past_key_values=cache)
    for _ in range(3):
        model(ids[:, :1], past_key_values=cache)
print(cache.get_seq_length())
"""


@pytest.mark.slow
def test_without_a_compiler_heads_are_attended_to_one_by_one(tmp_path: Path) -> None:
    environment = {**os.environ, "SINKLORA_CACHE": str(tmp_path), "CXX": "/nowhere/c++"}
    environment["PYTHONPATH"] = os.pathsep.join(["tests", ".", os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_A_COMPILER]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "133\n"
    assert done.stderr.count("ragged_attention is not compiled") == 1
    assert done.stderr.count("lowest_slots is not compiled") == 1
