"""`Replay` in whole models: scores, kept tokens and written text against brute force, and what it refuses."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPTBigCodeConfig

from adapted_models import randomized
from cache_simulation import (
    Simulation,
    check_kept,
    compare,
    compare_turns,
    replay_score,
    run,
    tokens,
    turn,
)
from helpers import assert_close, every_pair
from scaled_models import SCALINGS, scaled_model
from sinklora.cache.h2o import H2O
from sinklora.cache.layer import BudgetLayer
from sinklora.cache.replay import Replay
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.cache_positions import RotaryPositions
from sinklora.lora.adapter import lora_plus, merge_adapter
from tiny_models import ARCHITECTURES, tiny_config, tiny_model
from unturnable_models import (
    with_a_layer_without_positions,
    with_changing_frequencies,
    with_learned_positions,
)

POLICIES = {
    share: Replay(8, recent_share=0.25, sink_tokens=1, share=share) for share in ("head", "layer", "model")
}
POLICY = POLICIES["model"]
# Heads that share slots have no common positions inside the cache.
WAYS = [("head", "text"), ("head", "cache"), ("layer", "text"), ("model", "text")]
CALLS = [17, 1, 1, 1, 6, 1, 1]


def check_scores(cache: BudgetCache, row: int, truth: Simulation) -> None:
    """Every kept token of a row has the score that the simulation gives it."""
    # Angles, and the fading of a prompt's queries, are rounded to float32.
    atol = 3e-6 * max(1, truth.policy.attention_weight)  # type: ignore[attr-defined]
    for (index, head), alone in truth.heads.items():
        now = max(alone.received)
        layer = cache.budget_layers[index]
        cache.kept_positions(index)
        layer.pad()
        assert layer.positions is not None and layer.scorer is not None
        slots = {int(p): slot for slot, p in enumerate(layer.positions[row, head]) if p >= 0}
        found = layer.scorer.state["scores"][row, head]
        expected = [replay_score(alone, p, now, truth.policy) for p in sorted(alone.kept)]
        assert_close(found[[slots[p] for p in sorted(alone.kept)]], expected, atol=atol)


def compare_scores(
    model: Any, policy: Replay, calls: list[int], chunk: int | None = None, positions: str = "text"
) -> None:
    atol = 1e-9 if positions == "text" else 1e-5
    compare(model, policy, calls, chunk, positions=positions, atol=atol, check=check_scores)


# --- scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("calls", "way", "chunk"),
    every_pair([(17,), tuple(CALLS), (5, 4), (1, 1, 9, 1)], WAYS, (None, 4)),
    ids=str,
)
def test_scores_are_those_of_the_simulation(
    calls: tuple[int, ...], way: tuple[str, str], chunk: int | None
) -> None:
    share, positions = way
    chunk = None if share == "model" else chunk
    compare_scores(tiny_model("llama-gqa").double(), POLICIES[share], list(calls), chunk, positions)


@pytest.mark.parametrize("share", POLICIES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_the_scores_of_the_simulation(architecture: str, share: str) -> None:
    compare_scores(tiny_model(architecture).double(), POLICIES[share], CALLS)


@pytest.mark.parametrize(("share", "positions"), WAYS)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_has_the_scores_of_the_simulation(scaling: str, share: str, positions: str) -> None:
    compare_scores(scaled_model(scaling), POLICIES[share], CALLS, positions=positions)


def test_the_scaling_of_yarn_is_one_that_shows() -> None:
    rotary = RotaryPositions.of_model(scaled_model("yarn"))
    cos, sin = rotary.rotary(torch.zeros(1, 1, dtype=torch.float64), torch.arange(4)[None])
    assert float((cos.square() + sin.square()).min()) > 1.2


@pytest.mark.parametrize(
    "scoring", [{"attention_weight": 0.0}, {"decay": 1.0}, {"attention_weight": 40}], ids=str
)
def test_every_weight_equals_the_simulation(scoring: dict[str, float]) -> None:
    compare_scores(tiny_model("llama-gqa").double(), Replay(8, sink_tokens=1, **scoring), CALLS)


def test_where_a_text_begins_does_not_matter() -> None:
    model, ids = tiny_model("llama-gqa").double(), tokens(2, 20)
    caches = []
    for first in (0, 40):
        cache = BudgetCache(model, POLICY)
        for begin, end in ((0, 14), *((i, i + 1) for i in range(14, 20))):
            with torch.no_grad():
                model(
                    ids[:, begin:end],
                    position_ids=torch.arange(first + begin, first + end)[None],
                    past_key_values=cache,
                )
        caches.append(cache)
    for layer in range(2):
        assert torch.equal(*(cache.kept_positions(layer) for cache in caches))
        assert_close(*(c.budget_layers[layer].columns()["scores"] for c in caches), atol=1e-5)


# New tokens of three rows, turn by turn: rows of one token, rows without any, decoding in between.
TURNS = [[9, 4, 1], [1, 1, 3], [5, 1, 0], [1, 1, 1], [0, 7, 2], [1, 1, 1]]


@pytest.mark.parametrize(
    ("way", "side", "chunk"), every_pair(WAYS, ("left", "right", "middle"), (None, 4)), ids=str
)
def test_padded_rows_have_the_scores_that_they_have_alone(
    way: tuple[str, str], side: str, chunk: int | None
) -> None:
    share, positions = way
    model, atol = tiny_model("llama-gqa").double(), 1e-9 if positions == "text" else 1e-5
    policy, chunk = POLICIES[share], None if share == "model" else chunk
    compare_turns(model, policy, TURNS, side, chunk, positions=positions, atol=atol, check=check_scores)


# --- models after LoRA, half precision, written text --------------------------------------------------------


def test_an_adapted_model_equals_the_simulation_before_and_after_merging() -> None:
    adapted = randomized(lora_plus(tiny_model("llama-gqa"), rank=2)).double().eval()
    compare(adapted.base_model.model, POLICY, CALLS)
    ids = tokens(2, sum(CALLS))
    cache = BudgetCache(adapted, POLICY)
    logits = run(cache, adapted, ids, CALLS)
    merged = merge_adapter(copy.deepcopy(adapted)).eval()
    compare(merged, POLICY, CALLS)
    other = BudgetCache(merged, POLICY)
    assert_close(run(other, merged, ids, CALLS), logits, atol=1e-9)
    for layer in range(2):
        assert torch.equal(cache.kept_positions(layer), other.kept_positions(layer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_float32(dtype: torch.dtype) -> None:
    ids, exact = tokens(2), tiny_model("llama-gqa")
    half = copy.deepcopy(exact).to(dtype)
    caches = [BudgetCache(model, Replay(24)) for model in (exact, half)]
    logits = [
        run(cache, model, ids, [20, *[1] * 6]) for cache, model in zip(caches, (exact, half), strict=True)
    ]
    assert_close(logits[1].log_softmax(-1), logits[0].log_softmax(-1), atol=0.35)
    scores = [cache.budget_layers[0].columns()["scores"] for cache in caches]
    assert scores[1].dtype == torch.float32
    assert_close(scores[1], scores[0], atol=0.03, rtol=0.01)


def test_autocast_moves_queries_too() -> None:
    model, ids = tiny_model("llama-gqa"), tokens(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = BudgetCache(model, Replay(24))
        half = run(cache, model, ids, [20, *[1] * 6])
    exact = run(BudgetCache(model, Replay(24)), model, ids, [20, *[1] * 6])
    assert_close(half.log_softmax(-1), exact.log_softmax(-1), atol=0.35)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_written_tokens_are_those_of_the_simulation(side: str) -> None:
    model, ids = tiny_model("llama-gqa").double(), tokens(2, 14)
    mask = torch.ones_like(ids)
    mask[1, slice(0, 5) if side == "left" else slice(9, 14)] = 0
    # `generate` takes the last column for the newest token, so text padded on the right is read by hand.
    cache, steps = BudgetCache(model, POLICY), 9
    places = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids * mask, attention_mask=mask, position_ids=places, past_key_values=cache).logits
    given = logits[torch.arange(2), (mask * torch.arange(14)).argmax(1)].argmax(-1)[:, None]
    written = [given]
    for step in range(steps):
        at = mask.sum(1, keepdim=True) + step
        given = model(given, position_ids=at, past_key_values=cache).logits[:, -1:].argmax(-1)
        written.append(given)
    for row in range(2):
        prompt = ids[row, mask[row].bool()]
        said = torch.cat([prompt, torch.cat(written, 1)[row]])
        truth = Simulation(model, POLICY)
        expected = truth.run(said[:-1], [len(prompt), *[1] * steps]).argmax(-1)[len(prompt) - 1 :]
        assert expected.tolist() == said[len(prompt) :].tolist()
        check_kept(cache, row, truth)


def test_generate_writes_what_steps_by_hand_write() -> None:
    model, ids = tiny_model("llama-gqa").double(), tokens(2, 14)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cache = BudgetCache(model, POLICY)
    written = model.generate(ids * mask, attention_mask=mask, past_key_values=cache, **options)
    for row in range(2):
        alone = ids[row : row + 1, mask[row].bool()]
        expected = model.generate(alone, past_key_values=BudgetCache(model, POLICY), **options)
        assert written[row, 14:].tolist() == expected[0, alone.shape[1] :].tolist()


# --- moving queries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", SCALINGS)
def test_turning_further_is_being_put_there(scaling: str) -> None:
    model = scaled_model(scaling)
    rotary = RotaryPositions.of_model(model)
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    at, by = torch.randint(0, 30, (2, 1, 6)), torch.randint(0, 30, (2, 1, 6))
    here, there = rotary.rotated(x, at, 60), rotary.rotated(x, at + by, 60)
    assert_close(rotary.turned(here, by, 30), there, atol=1e-5)
    assert_close(rotary.turned(here, torch.zeros_like(by), 30), here, atol=1e-6)
    frequencies = next(m for m in model.modules() if hasattr(m, "inv_freq")).inv_freq
    for row in range(2):
        for head in range(4):
            assert_close(
                rotary.turned(here, by, 30)[row, head], turn(here[row, head], by[row, 0], frequencies), 1e-5
            )
    heads = by.expand(-1, 4, -1) + torch.arange(4)[None, :, None]
    assert_close(rotary.turned(here, heads, 40), rotary.rotated(x, at + heads, 64), atol=1e-5)
    half = rotary.turned(here.bfloat16(), by, 30)
    assert half.dtype == torch.bfloat16
    assert_close(half, there, atol=0.03)


# --- refusals -----------------------------------------------------------------------------------------------


def learned_positions_and_one_key_head() -> Any:
    config = GPTBigCodeConfig(n_embd=32, n_head=4, n_layer=1, vocab_size=61, n_positions=64)
    return AutoModelForCausalLM.from_config(config).eval()


def with_two_sets_of_frequencies() -> Any:
    pairs = 4
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, "factor": 2.0}
    rope |= {"short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
    return tiny_model("llama-gqa", rope_parameters=rope)


@pytest.mark.parametrize("positions", ["text", "cache"])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_learned_positions, "model_type='gpt2' has no rotary position embeddings"),
        (learned_positions_and_one_key_head, "model_type='gpt_bigcode' has no rotary position embeddings"),
        (with_a_layer_without_positions, "layer 1 of model_type='smollm3' does not turn its keys"),
        (with_changing_frequencies, "rope_type='dynamic' changes its frequencies"),
        (with_two_sets_of_frequencies, "rope_type='longrope' changes its frequencies"),
        (lambda: tiny_config("llama-gqa"), "needs the model itself, not its config"),
    ],
)
def test_models_whose_queries_cannot_be_moved_are_refused(make: Any, words: str, positions: str) -> None:
    model = make()
    asked = r"policy=Replay\(budget=0.2, .*\)" if positions == "text" else "positions='cache'"
    with pytest.raises(ValueError, match=f"{asked}: {words}") as refused:
        BudgetCache(model, Replay(0.2, share="head"), positions=positions)
    if positions == "text":
        assert "needs the model itself" in words or "such as H2O" in str(refused.value)
        BudgetCache(model, H2O(0.2))  # the remedy


def test_turns_that_are_not_the_models_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(self: RotaryPositions, x: Tensor, by: Tensor, length: int) -> Tensor:
        return right(self, x, -by, length)

    right = RotaryPositions.turned
    monkeypatch.setattr(RotaryPositions, "turned", backwards)
    with pytest.raises(ValueError, match="layer 0 of model_type='llama' does not turn its keys"):
        BudgetCache(tiny_model("llama-gqa"), Replay(0.2))
    BudgetCache(tiny_model("llama-gqa"), Replay(0.2), probe=False)


def test_what_shared_slots_cannot_do_is_refused() -> None:
    model = tiny_model("llama-gqa")
    for share in ("layer", "model"):
        with pytest.raises(
            ValueError, match=r'inside the cache for each: take positions="text", or share="head"'
        ):
            BudgetCache(model, Replay(8, share=share), positions="cache")
    with pytest.raises(ValueError, match=r'prefill_chunk=4: .*: take prefill_chunk=None, or share="layer"'):
        BudgetCache(model, Replay(8), prefill_chunk=4)
    with pytest.raises(ValueError, match=r'compiled=True: .*: take share="layer"'):
        BudgetCache(model, Replay(8), compiled=True)
    BudgetCache(model, Replay(8, share="layer"), prefill_chunk=4, compiled=True)  # the remedy
    BudgetCache(model, Replay(8, share="head"), positions="cache")


def test_a_layer_alone_asks_how_queries_are_turned() -> None:
    with pytest.raises(ValueError, match=r"query_rotation=None: Replay\(budget=8, .* moves queries"):
        BudgetLayer(Replay(8))
