"""A prompt read once and continued in several ways, against the model alone and against `generate`."""

import pytest
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from helpers import assert_close
from sinklora import H2O, CachePolicy, Local, StreamingLLM
from sinklora.evaluate.read_prompt import ReadPrompt, end_tokens
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import tiny_model

PROMPT = [1, *range(10, 40)]
CONTINUATIONS = [[5, 6, 7, 8], [9], [50, 3]]
POLICIES: list[CachePolicy | None] = [None, H2O(8), Local(6), StreamingLLM(6)]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa")


def fresh(model: PreTrainedModel, policy: CachePolicy | None) -> Cache:
    return DynamicCache() if policy is None else BudgetCache(model, policy)


@torch.inference_mode()
def one_by_one(model: PreTrainedModel, cache: Cache, continuation: list[int]) -> list[float]:
    """The prompt read again for this continuation alone, then one token after the other."""
    given, losses = PROMPT, []
    for token in continuation:
        logits = model(torch.tensor([given]), past_key_values=cache, use_cache=True).logits[0, -1]
        losses.append(float(-logits.float().log_softmax(-1)[token]))
        given = [token]
    return losses


def test_nats_are_those_of_the_whole_text_without_a_cache(model: PreTrainedModel) -> None:
    found = ReadPrompt(model, PROMPT, DynamicCache()).nats(CONTINUATIONS)
    for losses, continuation in zip(found, CONTINUATIONS, strict=True):
        with torch.inference_mode():
            likely = model(torch.tensor([PROMPT + continuation])).logits[0].float().log_softmax(-1)
        places = range(len(PROMPT) - 1, len(PROMPT) + len(continuation) - 1)
        wanted = [-float(likely[p, token]) for p, token in zip(places, continuation, strict=True)]
        assert_close(losses, wanted, atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_every_continuation_goes_on_from_the_prompt_alone(
    model: PreTrainedModel, policy: CachePolicy | None
) -> None:
    read = ReadPrompt(model, PROMPT, fresh(model, policy))
    read.greedy(5)
    for _ in range(2):
        found = read.nats(CONTINUATIONS)
        for losses, continuation in zip(found, CONTINUATIONS, strict=True):
            assert_close(losses, one_by_one(model, fresh(model, policy), continuation), atol=1e-4)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_greedy_is_what_generate_writes(model: PreTrainedModel, policy: CachePolicy | None) -> None:
    written = model.generate(  # type: ignore[operator]
        torch.tensor([PROMPT]),
        past_key_values=fresh(model, policy),
        max_new_tokens=9,
        min_new_tokens=9,
        eos_token_id=None,
        do_sample=False,
    )[0, len(PROMPT) :].tolist()
    read = ReadPrompt(model, PROMPT, fresh(model, policy))
    assert read.greedy(9) == written
    place = written.index(written[4])
    assert read.greedy(9, {written[4]}) == written[:place]


def test_ends_are_those_of_the_generation_settings(model: PreTrainedModel) -> None:
    settings = model.generation_config
    assert settings is not None
    before = settings.eos_token_id
    try:
        for given, ends in ((7, {7}), ([7, 9], {7, 9}), (None, set())):
            settings.eos_token_id = given
            assert end_tokens(model) == ends
    finally:
        settings.eos_token_id = before


def test_what_cannot_be_read_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ValueError, match="prompt=0"):
        ReadPrompt(model, [], DynamicCache())
    read = ReadPrompt(model, PROMPT, DynamicCache())
    for wrong in ([], [[1], []]):
        with pytest.raises(ValueError, match="continuations"):
            read.nats(wrong)
    model.train()
    try:
        with pytest.raises(ValueError, match="training mode"):
            ReadPrompt(model, PROMPT, DynamicCache())
    finally:
        model.eval()
