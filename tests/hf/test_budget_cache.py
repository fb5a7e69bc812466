"""Every way in which a bounded cache can be used."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from cache_simulation import Simulation, run, tokens
from helpers import assert_close
from sinklora.cache.expected_attention import ExpectedAttention
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.novelty import Novelty
from sinklora.cache.policies import CachePolicy
from sinklora.cache.replay import Replay
from sinklora.cache.sliding_window import Local
from sinklora.cache.snapkv import SnapKV
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.cache.tova import TOVA
from sinklora.evaluate.generation_cost import cache_bound_model
from sinklora.evaluate.memory import TensorMemory
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.rope import extend_context
from tiny_models import tiny_model

TOKENS, PROMPT = 26, 17


# --- generation ---------------------------------------------------------------------------------------------

MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 5},
    "beams": {"do_sample": False, "num_beams": 3},
    "beam-sampling": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    "chunked": {"do_sample": False, "prefill_chunk_size": 4},
}


def generate(model: torch.nn.Module, cache: object, mode: str, rows: int = 2, **more: object) -> Tensor:
    torch.manual_seed(5)
    options = {"max_new_tokens": 9, "min_new_tokens": 9, **MODES[mode], **more}
    return model.generate(tokens(rows, PROMPT), past_key_values=cache, **options)  # type: ignore[operator]


@pytest.mark.parametrize(
    "policy", [Full(), H2O(64), Local(64), StreamingLLM(30), Novelty(64), Replay(64)], ids=str
)
@pytest.mark.parametrize("mode", MODES)
def test_a_budget_that_is_never_full_generates_what_the_full_cache_does(
    mode: str, policy: CachePolicy
) -> None:
    model = tiny_model("llama-gqa")
    expected = generate(model, DynamicCache(), mode)
    assert generate(model, BudgetCache(model, policy), mode).tolist() == expected.tolist()


@pytest.mark.parametrize(
    "policy", [H2O(8), Local(8), StreamingLLM(8), Novelty(8, always_recent=2), Replay(8)], ids=str
)
@pytest.mark.parametrize("mode", MODES)
def test_generation_under_a_budget_is_bounded_and_repeats_itself(mode: str, policy: CachePolicy) -> None:
    model = tiny_model("llama-gqa")
    outputs = []
    for _ in range(2):
        cache = BudgetCache(model, policy)
        outputs.append(generate(model, cache, mode).tolist())
        kept = torch.stack([(cache.kept_positions(layer) >= 0).sum(-1) for layer in range(2)]).double()
        assert (kept.mean((0, 2)) == 8).all() and (policy.sharing.among == "model" or (kept == 8).all())
        assert cache.get_seq_length() == PROMPT + 8
    assert outputs[0] == outputs[1]


def test_greedy_generation_follows_the_simulation() -> None:
    model = tiny_model("llama-gqa").double()
    written = generate(model, BudgetCache(model, H2O(8)), "greedy", rows=1)[0]
    logits = Simulation(model, H2O(8)).run(written[:-1], [PROMPT] + [1] * 8)
    assert logits[PROMPT - 1 :].argmax(-1).tolist() == written[PROMPT:].tolist()


def test_beams_keep_what_their_own_tokens_would() -> None:
    model = tiny_model("llama-gqa").double()
    cache = BudgetCache(model, H2O(8))
    kept = generate(model, cache, "beams", rows=1, num_return_sequences=3)
    # The best beam, run alone over its own tokens, gives the same scores.
    out = model.generate(
        tokens(1, PROMPT),
        past_key_values=BudgetCache(model, H2O(8)),
        num_beams=3,
        max_new_tokens=9,
        min_new_tokens=9,
        return_dict_in_generate=True,
        output_scores=True,
        length_penalty=0.0,
    )
    best = out.sequences[0]
    alone = Simulation(model, H2O(8)).run(best[:-1], [PROMPT] + [1] * 8)
    chosen = alone[PROMPT - 1 :].log_softmax(-1).gather(-1, best[PROMPT:, None])
    assert_close(chosen.sum(), out.sequences_scores[0], atol=1e-6)
    assert kept[0].tolist() == best.tolist()


def test_a_second_turn_goes_on_with_the_same_cache() -> None:
    model = tiny_model("llama-gqa").double()
    cache = BudgetCache(model, H2O(8))
    first = model.generate(tokens(1, PROMPT), past_key_values=cache, max_new_tokens=5, min_new_tokens=5)
    both = torch.cat([first, tokens(1, 6, seed=9)], 1)
    second = model.generate(both, past_key_values=cache, max_new_tokens=4, min_new_tokens=4)
    calls = [PROMPT, 1, 1, 1, 1, 7, 1, 1, 1]
    logits = Simulation(model, H2O(8)).run(second[0, :-1], calls)
    assert logits[both.shape[1] - 1 :].argmax(-1).tolist() == second[0, both.shape[1] :].tolist()


def test_a_reset_cache_is_a_new_one() -> None:
    model = tiny_model("llama-gqa")
    cache = BudgetCache(model, H2O(8))
    expected = generate(model, cache, "greedy")
    cache.reset()
    assert cache.get_seq_length() == 0
    assert generate(model, cache, "greedy").tolist() == expected.tolist()


@torch.no_grad()
def test_a_cache_of_other_positions_is_refused() -> None:
    model = tiny_model("llama-gqa")
    cache = BudgetCache(model, StreamingLLM(8), positions="cache")
    extend_context(model, 4 * model.config.max_position_embeddings)
    with pytest.raises(ValueError, match=r"positions were changed .* make a new BudgetCache"):
        model(torch.ones(1, 12, dtype=torch.long), past_key_values=cache)
    model(torch.ones(1, 12, dtype=torch.long), past_key_values=BudgetCache(model, StreamingLLM(8)))


def test_the_model_itself_stays_as_it_was() -> None:
    model, ids = tiny_model("llama-gqa"), tokens(2, PROMPT)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": mask}
    expected, logits = model.generate(ids, **options), model(ids, attention_mask=mask).logits
    BudgetCache(model, H2O(8))
    assert model.generate(ids, **options).tolist() == expected.tolist()
    assert_close(model(ids, attention_mask=mask).logits[mask.bool()], logits[mask.bool()], atol=1e-5)


def test_a_model_with_a_pattern_generates_under_a_budget() -> None:
    import sinklora

    plain = tiny_model("llama-gqa")
    expected = generate(plain, BudgetCache(plain, H2O(8)), "greedy")
    model = sinklora.use_pattern(tiny_model("llama-gqa"), sinklora.SF).eval()
    assert generate(model, BudgetCache(model, H2O(8)), "greedy").tolist() == expected.tolist()


def test_half_precision_is_close_to_float32() -> None:
    exact, model = tiny_model("llama-gqa"), tiny_model("llama-gqa").bfloat16()
    ids, calls = tokens(2), [PROMPT] + [1] * (TOKENS - PROMPT)
    cache = BudgetCache(model, Local(9))
    expected = run(BudgetCache(exact, Local(9)), exact, ids, calls)
    assert_close(run(cache, model, ids, calls).log_softmax(-1), expected.log_softmax(-1), atol=0.35)
    assert cache.budget_layers[0].keys.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_under_a_large_budget_writes_what_the_full_cache_does(dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained("data/base", dtype=dtype).eval()
    ids = torch.randint(3, 4000, (2, 200), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, past_key_values=DynamicCache(), **options)
    cache = BudgetCache(model, H2O(1000))
    assert model.generate(ids, past_key_values=cache, **options).tolist() == expected.tolist()


def test_autocast_generates() -> None:
    model = tiny_model("llama-gqa")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = BudgetCache(model, H2O(8))
        assert generate(model, cache, "greedy").shape == (2, PROMPT + 9)
    assert cache.budget_layers[0].keys.dtype == torch.bfloat16


# --- bounds -------------------------------------------------------------------------------------------------


def replay_of(budget: int, recent: int, share: str) -> CachePolicy:
    return Replay(budget, recent_share=recent / budget, sink_tokens=0, share=share)


BOUNDED: list[Callable[[int, int], CachePolicy]] = [
    lambda budget, recent: H2O(budget, recent=recent),
    lambda budget, recent: Local(budget),
    lambda budget, recent: StreamingLLM(budget, sink_tokens=min(4, budget - 1)),
    lambda budget, recent: Novelty(budget, always_recent=recent),
    *(partial(replay_of, share=share) for share in ("head", "layer", "model")),
]


@settings(deadline=None, max_examples=40)
@given(
    make=st.sampled_from(BOUNDED),
    budget=st.integers(2, 12),
    recent=st.integers(1, 12),
    prompt=st.integers(1, 30),
    steps=st.integers(0, 8),
    rows=st.integers(1, 3),
    chunk=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 99),
)
def test_the_cache_keeps_to_its_budget_and_its_recent_tokens(
    make: Callable[[int, int], CachePolicy],
    budget: int,
    recent: int,
    prompt: int,
    steps: int,
    rows: int,
    chunk: int | None,
    seed: int,
) -> None:
    model = MODEL
    policy = make(budget, min(recent, budget))
    chunk = None if policy.sharing.among == "model" else chunk
    cache = BudgetCache(model, policy, prefill_chunk=chunk)
    run(cache, model, tokens(rows, prompt + steps, seed), [prompt] + [1] * steps)
    found = [cache.kept_positions(layer) for layer in range(2)]
    counts = torch.stack([(kept >= 0).sum(-1) for kept in found])  # [layers, B, Hkv]
    together = {"head": [], "layer": [2], "model": [0, 2]}[policy.sharing.among]
    assert (counts.double().mean(together) if together else counts).eq(min(budget, prompt + steps)).all()
    for kept in found:
        assert (kept.diff(dim=-1) > 0)[kept[..., 1:] >= 0].all()
        newest = torch.arange(max(0, prompt + steps - policy.split(prompt).recent), prompt + steps)
        assert torch.isin(newest, kept[0, 0]).all()
    assert cache.get_seq_length() == prompt + steps


MODEL = tiny_model("llama-gqa")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_budget_times_layers_times_heads(dtype: torch.dtype) -> None:
    model = tiny_model("llama-gqa").to(dtype)
    ids, calls = tokens(3), [PROMPT] + [1] * (TOKENS - PROMPT)
    heads, size, layers, rows = 2, 8, 2, 3
    for policy, bookkeeping in (
        (H2O(8), 8),
        (Local(8), 4),
        (Novelty(8), 12),
        (Replay(8), 20),
        (Replay(8, share="head"), 20),
        (SnapKV(8), 8),
        (TOVA(8), 8),
        (ExpectedAttention(8), 8),
    ):
        cache = BudgetCache(model, policy)
        run(cache, model, ids, calls)
        # A slot for each token of the budget, and a free one for the next.
        assert cache.nbytes() == 9 * layers * heads * rows * (2 * size * dtype.itemsize + bookkeeping)


@pytest.mark.parametrize(
    "policy",
    [
        H2O(0.2),
        Local(0.2),
        StreamingLLM(0.2),
        Novelty(0.2),
        Replay(0.2),
        SnapKV(0.2),
        ExpectedAttention(0.2),
        Full(),
    ],
    ids=str,
)
def test_a_prompt_takes_no_more_memory_than_with_transformers_cache(policy: CachePolicy) -> None:
    model, ids = cache_bound_model(), tokens(1, 2048)
    peaks = []
    for cache in (DynamicCache(), BudgetCache(model, policy)):
        with torch.inference_mode(), TensorMemory() as memory:
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        peaks.append(memory.peak)
    # The scores of one layer alone would be three times the first.
    assert peaks[1] <= 1.3 * peaks[0] < 8 * 2048**2 * 4 / 2


def test_decoding_moves_no_storage() -> None:
    cache = BudgetCache(MODEL, H2O(8))
    run(cache, MODEL, tokens(1, PROMPT), [PROMPT])
    before = cache.budget_layers[0].keys.data_ptr()
    run(cache, MODEL, tokens(1, 6, seed=8), [1] * 6)
    assert cache.budget_layers[0].keys.data_ptr() == before


# --- bad input ----------------------------------------------------------------------------------------------


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="policy="):
        BudgetCache(MODEL, 0.2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefill_chunk=0"):
        BudgetCache(MODEL, H2O(8), prefill_chunk=0)


@torch.no_grad()
def test_a_cache_belongs_to_one_batch_and_one_model() -> None:
    cache = BudgetCache(MODEL, H2O(8))
    MODEL(tokens(2, 5), past_key_values=cache)
    with pytest.raises(ValueError, match="holds 2 rows and was given 3"):
        MODEL(tokens(3, 1), past_key_values=cache)
    twin = tiny_model("llama-gqa", seed=1)
    BudgetCache(twin, H2O(8))
    with pytest.raises(ValueError, match="filled by another model"):
        twin(tokens(2, 1), past_key_values=cache)
    other = tiny_model("llama-mha")
    BudgetCache(other, H2O(8))
    with pytest.raises(ValueError, match="belongs to another model"):
        other(tokens(2, 1), past_key_values=cache)


@torch.no_grad()
def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    model, twin = tiny_model("llama-gqa").double(), tiny_model("llama-gqa", seed=1).double()
    ids = tokens(2, 12)
    expected = run(BudgetCache(model, H2O(8)), model, ids, [9, 1, 1, 1])
    cache = BudgetCache(model, H2O(8))
    with pytest.raises(ValueError, match="call model"):
        model.train()(tokens(3, 5), past_key_values=cache)
    model.eval()
    first = run(cache, model, ids[:, :9], [9])
    BudgetCache(twin, H2O(8))
    with pytest.raises(ValueError, match="filled by another model"):
        twin(ids[:, :3], past_key_values=cache)
    assert cache.get_seq_length() == 9
    assert_close(torch.cat([first, run(cache, model, ids[:, 9:], [1, 1, 1])], 1), expected, atol=1e-9)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_mask_of_the_new_turn_alone_is_refused(padded: bool) -> None:
    model, ids = tiny_model("llama-gqa"), tokens(2, 12)
    cache = BudgetCache(model, H2O(8))
    model(ids[:, :5], past_key_values=cache)
    turn = torch.ones(2, 7, dtype=torch.long)
    turn[1, :3] = int(not padded)
    with pytest.raises(ValueError, match="attention_mask covers 7 tokens, expected 12: the 5 in the cache"):
        model(ids[:, 5:], attention_mask=turn, past_key_values=cache)
    whole = torch.cat([torch.ones(2, 5, dtype=torch.long), turn], 1)
    found = model(ids[:, 5:], attention_mask=whole, past_key_values=cache).logits
    other = BudgetCache(model, H2O(8))
    model(ids[:, :5], past_key_values=other)
    assert torch.equal(found, model(ids[:, 5:], attention_mask=whole, past_key_values=other).logits)


@torch.no_grad()
def test_unsupported_uses_are_refused() -> None:
    model = tiny_model("llama-gqa")
    with pytest.raises(ValueError, match="call model"):
        model.train()(tokens(1, 5), past_key_values=BudgetCache(model, H2O(8)))
    model.eval()
    with pytest.raises(ValueError, match="use_cache=False"):
        model(tokens(1, 5), past_key_values=BudgetCache(model, H2O(8)), use_cache=False)
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(tokens(1, 5), past_key_values=BudgetCache(model, H2O(8)), use_cache=False)
    with pytest.raises(ValueError, match="4-D"):
        mask = torch.zeros(1, 1, 5, 5)
        model(tokens(1, 5), attention_mask=mask, past_key_values=BudgetCache(model, H2O(8)))
    with pytest.raises(ValueError, match="cropped"):
        BudgetCache(model, H2O(8)).crop(-1)
    with pytest.raises(ValueError, match="cropped"):
        cache = BudgetCache(model, H2O(8))
        model.generate(tokens(1, 5), past_key_values=cache, prompt_lookup_num_tokens=2, max_new_tokens=8)
    with pytest.raises(ValueError, match="sliding_window"):
        BudgetCache(tiny_model("mistral-gqa", sliding_window=8), H2O(8))


@pytest.mark.parametrize("policy", [Full(), H2O(budget=1.0), H2O(budget=0.5)], ids=str)
@torch.no_grad()
def test_what_a_head_stores_is_contiguous(policy: CachePolicy) -> None:
    # Keys come as views of projections; a product over such a view copies it, every step.
    model = tiny_model("llama-gqa").eval()
    cache = BudgetCache(model, policy)
    ids = torch.arange(3, 19)[None]
    model(ids, past_key_values=cache, use_cache=True)
    model(ids[:, :1], past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        for stored in (layer.keys, layer.values):
            assert stored[0, 0].is_contiguous()
            assert stored.flatten(0, 1).data_ptr() == stored.data_ptr()
