"""Every policy's cache in half precision, on each kind of device: what float32 on the CPU gives, but for
rounding.

On a GPU nothing else reaches, in a model, flash with the kernels' sums and maxima, heads that share slots,
and captured steps.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sinklora.cache.h2o import H2O
from sinklora.cache.policies import POLICIES, CachePolicy, make_policy
from sinklora.cache.replay import Replay
from sinklora.cache.snapkv import SnapKV
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import VOCABULARY, tiny_model

PROMPT, STEPS = 700, 16

CHOSEN: dict[str, CachePolicy] = {name: make_policy(name, 0.5) for name in POLICIES if POLICIES[name].bounded}
CHOSEN |= {"replay, layer": Replay(0.5, share="layer"), "snapkv, model": SnapKV(0.5, share="model")}

DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def model() -> Any:
    """With heads that FlashAttention takes, and weights that bfloat16 holds exactly."""
    torch.manual_seed(0)
    made = tiny_model("llama-gqa", hidden_size=64, max_position_embeddings=1024)
    return made.bfloat16().float()


@torch.no_grad()
def logits(reading: Any, policy: CachePolicy, step_by: Callable[..., Any] | None = None) -> Tensor:
    """Of given tokens behind a prompt: [rows, steps, vocabulary]. `step_by`: the model, captured."""
    ids = torch.randint(3, VOCABULARY, (2, PROMPT + STEPS), generator=torch.Generator().manual_seed(1))
    ids, cache, found = ids.to(reading.device), BudgetCache(reading, policy), []
    reading(ids[:, :PROMPT], past_key_values=cache, logits_to_keep=1)
    for step in range(PROMPT, PROMPT + STEPS):
        output = (step_by or reading)(ids[:, step : step + 1].contiguous(), past_key_values=cache)
        found.append(output.logits.float().cpu())  # a captured step writes the next one's over them
    return torch.cat(found, 1)


def off(found: Tensor, expected: Tensor) -> float:
    """How long the error is, of the logits' length; rounding is up to 6 %."""
    return float((found - expected).norm() / expected.norm())


@DEVICES
@pytest.mark.parametrize("policy", CHOSEN.values(), ids=CHOSEN)
def test_decoding_is_that_of_float32(policy: CachePolicy, device: str) -> None:
    expected = logits(model(), policy)
    assert off(logits(model().to(device, torch.bfloat16), policy), expected) < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("policy", [H2O(350), StreamingLLM(350), Replay(350, share="head")], ids=str)
def test_captured_steps_are_those_that_are_not(policy: CachePolicy) -> None:
    reading = model().to("cuda", torch.bfloat16)
    captured = torch.compile(reading.__call__, mode="reduce-overhead", fullgraph=True)
    assert off(logits(reading, policy, captured), logits(reading, policy)) < 0.1
