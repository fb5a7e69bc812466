"""Positions inside the cache against brute force and against a model that is given only what is kept."""

import copy
import inspect
import json.decoder
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from cache_simulation import compare, compare_turns, run, tokens
from helpers import assert_close
from scaled_models import SCALINGS, scaled_model
from sinklora.cache.attention_scores import Score
from sinklora.cache.expected_attention import ExpectedAttention
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.novelty import Novelty
from sinklora.cache.policies import CachePolicy
from sinklora.cache.replay import Replay
from sinklora.cache.sliding_window import SlidingWindow
from sinklora.cache.snapkv import SnapKV
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.cache.tova import TOVA
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.cache_positions import RotaryPositions, trained_length
from sinklora.hf.rope import extend_context
from tiny_models import ARCHITECTURES, tiny_config, tiny_model
from unturnable_models import (
    with_a_layer_without_positions,
    with_changing_frequencies,
    with_learned_positions,
    with_positions_by_layer_type,
    with_positions_in_a_part_of_each_head,
)

POLICIES = {
    "h2o": H2O(8),
    "h2o-fraction": H2O(0.4),
    "h2o-window": H2O(8, scoring=Score(window=3)),
    "local": SlidingWindow(7),
    "streaming": StreamingLLM(9, sink_tokens=2),
    "novelty": Novelty(8, always_recent=2),
    "replay": Replay(8, recent_share=0.25, sink_tokens=1, share="head"),
    "snapkv": SnapKV(8, window=3),
    "tova": TOVA(8),
    "expected": ExpectedAttention(8, sink_tokens=1, future=9),
    "full": Full(),
}
CALLS = [12, *[1] * 5, 6, 1, 1, 1]
# Angles are rounded to float32 by the model, and not by the simulation.
close = partial(compare, positions="cache", atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 5])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_policy_equals_the_simulation(policy: CachePolicy, chunk: int | None) -> None:
    close(tiny_model("llama-gqa").double(), policy, CALLS, chunk)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_equals_the_simulation(architecture: str) -> None:
    close(tiny_model(architecture).double(), H2O(8), CALLS)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_equals_the_simulation(scaling: str) -> None:
    close(scaled_model(scaling), H2O(8), CALLS)


@pytest.mark.parametrize("side", ["left", "right", "middle"])
@pytest.mark.parametrize(
    "policy", [H2O(0.4), StreamingLLM(6, sink_tokens=2), Novelty(8), Replay(0.5, share="head")], ids=str
)
def test_turns_of_padded_rows_are_what_each_row_is_alone(policy: CachePolicy, side: str) -> None:
    turns = [[9, 4, 1], [1, 1, 3], [1, 1, 1], [0, 7, 2], [1, 1, 1]]
    chunk = 3 if side == "left" else None
    compare_turns(tiny_model("llama-gqa").double(), policy, turns, side, chunk, positions="cache", atol=1e-5)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("policy", [StreamingLLM(7, sink_tokens=3), SlidingWindow(5)], ids=str)
def test_a_step_is_a_pass_over_the_kept_tokens_and_the_new_one(policy: CachePolicy, scaling: str) -> None:
    # With one layer, keys and values depend on their own token alone.
    model, ids = scaled_model(scaling, layers=1), tokens(2, 30)
    cache = BudgetCache(model, policy, positions="cache")
    run(cache, model, ids[:, :10], [10])
    for at in range(10, 30):
        kept = cache.kept_positions(0)[0, 0].tolist()
        step = run(cache, model, ids[:, at : at + 1], [1])[:, 0]
        with torch.no_grad():
            alone = model(ids[:, [*kept, at]], use_cache=False).logits[:, -1]
        assert_close(step, alone, atol=1e-5)


@pytest.mark.parametrize("scaling", ["default", "yarn"])
def test_without_eviction_positions_in_cache_and_text_are_the_same(scaling: str) -> None:
    model, ids = scaled_model(scaling), tokens(2, 24)
    inside = run(BudgetCache(model, Full(), positions="cache"), model, ids, [20, 1, 1, 2])
    assert_close(inside, run(BudgetCache(model, Full()), model, ids, [20, 1, 1, 2]), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_million_tokens_of_text_before_change_nothing(dtype: torch.dtype) -> None:
    # Far positions are turned back by the very angles they were turned by, however those were rounded.
    model, ids = tiny_model("llama-gqa").to(dtype), tokens(2, 20)
    logits = []
    for first in (0, 1_000_000):
        cache = BudgetCache(model, H2O(8), positions="cache")
        for begin, end in ((0, 14), *((i, i + 1) for i in range(14, 20))):
            at = torch.arange(first + begin, first + end)[None]
            with torch.no_grad():
                out = model(ids[:, begin:end], position_ids=at, past_key_values=cache)
        logits.append(out.logits)
    assert_close(logits[1], logits[0], atol=1e-4)


def test_a_stream_beyond_the_trained_length_reads_as_well_as_within() -> None:
    model = AutoModelForCausalLM.from_pretrained("data/base", use_cache=True).eval()
    assert trained_length(model.config) == 512
    text = inspect.getsource(json.decoder)
    ids = AutoTokenizer.from_pretrained("data/base")(text, return_tensors="pt")["input_ids"][:, :1024]

    def nats(policy: CachePolicy, positions: str) -> float:
        cache = BudgetCache(model, policy, positions=positions)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = run(cache, model, ids, [64] * 16)[0, 600:-1]
        return float(torch.nn.functional.cross_entropy(logits, ids[0, 601:]))

    window = nats(SlidingWindow(128), "text")  # looks back so far and no farther, wherever it is
    for policy in (H2O(128), StreamingLLM(128)):
        assert nats(policy, "cache") < window + 0.2
    assert nats(H2O(128), "text") > window + 0.5  # what the option is for


# --- uses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generation_is_bounded_and_goes_on(mode: dict[str, int]) -> None:
    model = tiny_model("llama-gqa")
    cache = BudgetCache(model, StreamingLLM(8), positions="cache")
    options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, **mode}
    first = model.generate(tokens(2, 12), past_key_values=cache, **options)
    again = model.generate(torch.cat([first, tokens(2, 3)], 1), past_key_values=cache, **options)
    assert again.shape == (2, 33) and cache.kept_positions(0).shape[-1] == 8
    assert cache.kept_positions(1)[0, 0].tolist() == [0, 1, 2, 3, 28, 29, 30, 31]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(dtype: torch.dtype) -> None:
    ids, calls = tokens(2), [17, *[1] * 9]
    exact, model = tiny_model("llama-gqa"), tiny_model("llama-gqa").to(dtype)
    logits = [run(BudgetCache(m, SlidingWindow(9), positions="cache"), m, ids, calls) for m in (exact, model)]
    assert_close(logits[1].log_softmax(-1), logits[0].log_softmax(-1), atol=0.35)


def test_autocast_keeps_the_angles_of_the_model() -> None:
    model, ids = tiny_model("llama-gqa"), tokens(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = BudgetCache(model, SlidingWindow(9), positions="cache")
        half = run(cache, model, ids, [17, *[1] * 9])
    exact = run(BudgetCache(model, SlidingWindow(9), positions="cache"), model, ids, [17, *[1] * 9])
    assert cache.budget_layers[0].keys.dtype == torch.bfloat16
    assert_close(half.log_softmax(-1), exact.log_softmax(-1), atol=0.35)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_a_copy_goes_on_like_the_cache(make: Any) -> None:
    model, ids = tiny_model("llama-gqa").double(), tokens(2)
    cache = BudgetCache(model, H2O(8), positions="cache")
    run(cache, model, ids[:, :20], [20])
    other = make(cache)
    assert_close(run(other, model, ids[:, 20:], [1] * 6), run(cache, model, ids[:, 20:], [1] * 6), atol=1e-12)


def test_the_model_stays_as_it_was() -> None:
    model, ids = scaled_model("yarn"), tokens(2)
    with torch.no_grad():
        before = model(ids).logits
        run(BudgetCache(model, H2O(8), positions="cache"), model, ids, [20, *[1] * 6])
        assert torch.equal(model(ids).logits, before)


# --- how far positions go -----------------------------------------------------------------------------------


def said(model: Any, cache: BudgetCache, calls: list[int]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(cache, model, tokens(1, sum(calls)), calls)
    return [str(warning.message) for warning in caught if "positions reach" in str(warning.message)]


@pytest.mark.parametrize(
    ("positions", "calls", "reach", "remedy"),
    [
        ("text", [60, 4], None, ""),
        ("text", [60, 4, 1, 1], "65", "positions='cache'"),
        ("text", [70, 1, 1], "70", "positions='cache'"),
        ("cache", [60, *[1] * 20], None, ""),
        ("cache", [40] * 4, None, ""),
        ("cache", [60, 60], "68", "prefill_chunk"),
        ("cache", [70, 1], "70", "prefill_chunk"),
    ],
    ids=str,
)
def test_positions_beyond_the_trained_length_are_told_once(
    positions: str, calls: list[int], reach: str | None, remedy: str
) -> None:
    model = tiny_model("llama-gqa")
    found = said(model, BudgetCache(model, H2O(8), positions=positions), calls)
    assert len(found) == (reach is not None)
    for text in found:
        assert f"positions reach {reach}, beyond the 64 that" in text and remedy in text


def test_pieces_keep_a_long_prompt_within_the_trained_length() -> None:
    model = tiny_model("llama-gqa")
    cache = BudgetCache(model, H2O(8), positions="cache", prefill_chunk=16)
    assert said(model, cache, [150, 1]) == []


def test_padding_is_no_position() -> None:
    model, ids = tiny_model("llama-gqa"), tokens(2, 70)
    mask = torch.ones_like(ids)
    mask[:, :10] = 0
    cache = BudgetCache(model, H2O(8))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), past_key_values=cache)


@pytest.mark.parametrize(
    ("method", "expected"), [(None, 64), ("linear", 256), ("yarn", 256), ("dynamic", 256)], ids=str
)
def test_the_trained_length_is_that_of_the_extension(method: str | None, expected: int) -> None:
    model = tiny_model("llama-gqa")
    if method is not None:
        extend_context(model, 256, method=method)
    assert trained_length(model.config) == expected


@pytest.mark.parametrize("method", ["linear", "yarn", "dynamic"])
def test_the_trained_length_of_layer_types_is_that_of_the_extension(method: str) -> None:
    model = with_positions_by_layer_type()
    assert trained_length(model.config) == 64
    assert trained_length(extend_context(model, 256, method=method).config) == 256


def test_a_scaling_that_a_model_came_with_counts() -> None:
    parameters = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    assert trained_length(tiny_config("llama-gqa", rope_parameters=parameters)) == 128
    assert trained_length(tiny_config("llama-gqa")) == 64


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_learned_positions, "model_type='gpt2' has no rotary position embeddings"),
        (with_changing_frequencies, "rope_type='dynamic' changes its frequencies"),
        (with_a_layer_without_positions, "layer 1 of model_type='smollm3' does not turn its keys"),
        (with_positions_in_a_part_of_each_head, "model_type='phi' failed .* turns a part of each head alone"),
        (
            with_positions_by_layer_type,
            "model_type='olmo3' has rotary position embeddings for each layer type",
        ),
        (partial(tiny_config, "llama-gqa"), "needs the model itself, not its config"),
    ],
)
def test_models_whose_keys_cannot_be_turned_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"positions='cache': {words}"):
        BudgetCache(make(), H2O(8), positions="cache")


@pytest.mark.parametrize("policy", [H2O(8), Replay(8, share="head")], ids=str)
def test_rounding_that_tells_later_tokens_apart_is_no_reason_to_refuse(policy: CachePolicy) -> None:
    model = tiny_model("llama-gqa", seed=2, num_hidden_layers=8).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            parameter.data.mul_(3)
    everything = BudgetCache(model, Full(), positions="cache", probe=False)
    at = torch.arange(4) + torch.tensor([[0], [9]])
    with torch.no_grad():
        model(torch.arange(1, 5).expand(2, -1), position_ids=at, past_key_values=everything)
    keys = everything.budget_layers[-1].keys[:, :, :4].double()
    assert (keys[0] - keys[1]).abs().max() > 0.25 * keys.abs().max()
    BudgetCache(model, policy, positions="cache")
    BudgetCache(model, policy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_does_not_hide_layers_without_positions(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="layer 1 of model_type='smollm3' does not turn its keys"):
        BudgetCache(with_a_layer_without_positions().to(dtype), H2O(8), positions="cache")


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(ValueError, match="positions='inside': expected one of text, cache"):
        BudgetCache(tiny_model("llama-gqa"), H2O(8), positions="inside")


def test_turns_that_are_not_the_models_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: RotaryPositions, query: Tensor, key: Tensor, position_ids: Any) -> tuple[Tensor, Tensor]:
        return query, key

    monkeypatch.setattr(RotaryPositions, "unrotated", wrong)
    with pytest.raises(ValueError, match="layer 0 of model_type='llama' does not turn its keys"):
        BudgetCache(tiny_model("llama-gqa"), H2O(8), positions="cache")
    BudgetCache(tiny_model("llama-gqa"), H2O(8), positions="cache", probe=False)
