"""A second pass over the prompt: its scores against a dense pass, and what stays against a simulation."""

import copy

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers import assert_close
from sinklora import H2O, BudgetCache
from sinklora.cache.policies import POLICIES
from sinklora.reproduction.cache.second_pass import SecondPass, SecondPassCache, cache_for, later_maxima
from tiny_models import tiny_model

POLICY = SecondPass(0.3, instruction=" again:")
PROMPT = 40


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained("data/base")


@pytest.fixture(scope="module", params=["llama-mha", "llama-gqa"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    made = tiny_model(request.param)
    made.resize_token_embeddings(AutoTokenizer.from_pretrained("data/base").vocab_size + 8)
    return made.eval()


def prompts() -> Tensor:
    return torch.randint(10, 90, (2, PROMPT), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def dense_scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Tensor) -> Tensor:
    """[layers, B, Hkv, N] from the attention of one plain pass over prompt, instruction and prompt."""
    between = torch.tensor([tokenizer(POLICY.instruction, add_special_tokens=False)["input_ids"]] * 2)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    found = model(torch.cat([prompt, between, prompt], 1), output_attentions=True, use_cache=False).attentions
    model.set_attn_implementation(before)
    heads = model.config.num_key_value_heads
    looks = [layer[:, :, PROMPT:, :PROMPT].unflatten(1, (heads, -1)).amax((2, 3)) for layer in found]
    return torch.stack(looks)


def test_maxima_are_those_of_a_masked_softmax() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, rows, 8, generator=draw) for heads, rows in ((4, 9), (2, 25)))
    scores = torch.einsum("bhgqd,bhkd->bhgqk", query.unflatten(1, (2, 2)), key) * 0.3
    hidden = torch.arange(25) > torch.arange(16, 25)[:, None]
    wanted = scores.masked_fill(hidden, -torch.inf).softmax(-1)[..., :12].amax((2, 3))
    assert_close(later_maxima(query, key, 12, 0.3), wanted, atol=1e-6)


@torch.no_grad()
def test_what_the_second_pass_looks_at_most_stays(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = prompts()
    cache = SecondPassCache(model, POLICY, tokenizer)
    model(input_ids=prompt, past_key_values=cache, use_cache=True)
    scores = dense_scores(model, tokenizer, prompt)
    split = POLICY.split(PROMPT)
    assert split == (4, 7, 1)
    free = slice(split.protected, PROMPT - split.recent)
    layers, rows, heads, _ = scores.shape
    for row in range(rows):
        ranked = scores[:, row, :, free].flatten().argsort(descending=True)
        chosen = torch.zeros(layers * heads * (PROMPT - 5), dtype=torch.bool)
        chosen[ranked[: split.heavy * layers * heads]] = True
        for layer, of_layer in enumerate(chosen.view(layers, heads, -1)):
            kept = cache.kept_positions(layer)[row]
            for head, of_head in enumerate(of_layer):
                wanted = {*range(4), *(of_head.nonzero()[:, 0] + 4).tolist(), PROMPT - 1}
                assert {place for place in kept[head].tolist() if place >= 0} == wanted


@torch.no_grad()
def test_a_prompt_is_read_again_once_and_copies_go_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    cache = SecondPassCache(model, POLICY, tokenizer)
    calls: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, __, given: calls.append(1), with_kwargs=True)
    first = model(input_ids=prompts(), past_key_values=cache, use_cache=True).logits[:, -1]
    assert len(calls) == 2
    plain = model(prompts(), use_cache=False).logits[:, -1]
    assert_close(first, plain, atol=1e-4)  # the prompt itself is read in full
    calls.clear()
    copied = copy.deepcopy(cache)
    turn = torch.tensor([[5, 6, 7]] * 2)
    model(input_ids=turn, past_key_values=copied, use_cache=True)
    model(input_ids=turn[:, :1], past_key_values=copied, use_cache=True)
    hook.remove()
    assert len(calls) == 2
    for layer in range(len(copied.budget_layers)):
        kept = copied.kept_positions(layer)
        assert all({PROMPT, PROMPT + 1, PROMPT + 2} <= set(head.tolist()) for row in kept for head in row)
    assert cache.get_seq_length() == PROMPT


def test_it_needs_the_tokens_by_name_and_no_padding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match="needs input_ids, given by name"):
        model(prompts(), past_key_values=SecondPassCache(model, POLICY, tokenizer), use_cache=True)
    mask = torch.ones(2, PROMPT, dtype=torch.long)
    mask[0, 0] = 0
    cache = SecondPassCache(model, POLICY, tokenizer)
    with pytest.raises(ValueError, match="rows without padding"):
        model(input_ids=prompts(), attention_mask=mask, past_key_values=cache, use_cache=True)


def test_it_is_made_for_measurements_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert SecondPass not in POLICIES.values()
    assert type(cache_for(model, POLICY, tokenizer)) is SecondPassCache
    assert type(cache_for(model, H2O(0.2), tokenizer)) is BudgetCache
