"""The bounded cache against a brute-force simulation, and every way in which it can be used."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from cache_simulation import Simulation
from helpers import assert_close
from sinklora.cache.attention_scores import Score
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.novelty import Novelty
from sinklora.cache.policies import CachePolicy
from sinklora.cache.sliding_window import Local
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.evaluate.generation_cost import cache_bound_model
from sinklora.evaluate.memory import TensorMemory
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import ARCHITECTURES, VOCABULARY, tiny_model

POLICIES = {
    "h2o": H2O(8),
    "h2o-fraction": H2O(0.4),
    "h2o-mostly-recent": H2O(heavy=2, recent=6),
    "h2o-heavy-only": H2O(heavy=6, recent=0),
    "h2o-protected": H2O(8, sink_tokens=2),
    "h2o-decayed": H2O(8, scoring=Score(decay=0.8)),
    "h2o-window": H2O(8, scoring=Score(window=3)),
    "h2o-averaged": H2O(8, scoring=Score(average=True)),
    "local": Local(7),
    "streaming": StreamingLLM(9, sink_tokens=2),
    "novelty": Novelty(8, always_recent=2),
    "novelty-half": Novelty(0.5, share=0.5, always_recent=0, sink_tokens=1),
    "full": Full(),
}
TOKENS, PROMPT = 26, 17


def tokens(rows: int = 1, length: int = TOKENS, seed: int = 3) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(cache: BudgetCache, model: torch.nn.Module, ids: Tensor, calls: list[int]) -> Tensor:
    """Logits [rows, N, vocabulary], the tokens fed in calls of so many."""
    parts = ids.split(calls, dim=1)
    return torch.cat([model(part, past_key_values=cache).logits for part in parts], 1)


def compare(
    model: torch.nn.Module, policy: CachePolicy, calls: list[int], chunk: int | None, rows: int = 2
) -> None:
    ids = tokens(rows, sum(calls))
    cache = BudgetCache(model, policy, prefill_chunk=chunk)
    logits = run(cache, model, ids, calls)
    for row in range(rows):
        truth = Simulation(model, policy, chunk)  # type: ignore[arg-type]
        assert_close(logits[row], truth.run(ids[row], calls), atol=1e-9)
        for (layer, head), kept in truth.heads.items():
            found = cache.kept_positions(layer)[row, head]
            assert found[found >= 0].tolist() == sorted(kept.kept)


@pytest.mark.parametrize("chunk", [None, 1, 5], ids=lambda c: f"chunk-{c}")
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_every_policy_equals_the_simulation(policy: CachePolicy, chunk: int | None) -> None:
    model = tiny_model("llama-gqa").double()
    compare(model, policy, [PROMPT] + [1] * (TOKENS - PROMPT), chunk)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_equals_the_simulation(architecture: str) -> None:
    model = tiny_model(architecture).double()
    compare(model, H2O(8), [PROMPT] + [1] * (TOKENS - PROMPT), None)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_one_row_with_one_key_value_head_equals_the_simulation(policy: CachePolicy) -> None:
    # A slot of it is a view without gaps, which reading and writing at once would mix up.
    compare(tiny_model("gemma-mqa").double(), policy, [PROMPT] + [1] * (TOKENS - PROMPT), None, rows=1)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize(
    "calls",
    # The last: a fraction grows by more than a turn brings, so slots are free that no token may claim.
    [[1] * 20, [10, 1, 1, 9, 1, 1], [4, 4, 4, 1, 1], [6, *[1] * 14, 3, 1, 1, 1, 2, 1, 1, 1, 1]],
    ids=lambda c: f"{len(c)}-calls",
)
def test_several_turns_equal_the_simulation(policy: CachePolicy, calls: list[int]) -> None:
    compare(tiny_model("llama-gqa").double(), policy, calls, None)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_padded_row_is_what_it_is_alone(policy: CachePolicy, chunk: int | None, side: str) -> None:
    model = tiny_model("llama-gqa").double()
    ids, after = tokens(3, PROMPT), tokens(3, 6, seed=4)
    lengths = [PROMPT, 5, 11]
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, -length:] = 1
    if side == "right":
        mask = mask.flip(1)
    whole = BudgetCache(model, policy, prefill_chunk=chunk)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        first = model(ids, attention_mask=mask, position_ids=positions, past_key_values=whole).logits
        rest = []
        for step in range(6):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            at = mask.sum(1, keepdim=True) - 1
            new = after[:, step : step + 1]
            rest.append(model(new, attention_mask=mask, position_ids=at, past_key_values=whole).logits)
    for row, length in enumerate(lengths):
        mine = ids[row, mask[row, :PROMPT].bool()]
        alone = BudgetCache(model, policy, prefill_chunk=chunk)
        expected = run(alone, model, torch.cat([mine, after[row]])[None], [length] + [1] * 6)[0]
        assert_close(first[row, mask[row, :PROMPT].bool()], expected[:length], atol=1e-9)
        assert_close(torch.cat(rest, 1)[row], expected[length:], atol=1e-9)
        for layer in range(2):
            kept = whole.kept_positions(layer)[row]
            own = alone.kept_positions(layer)[0]
            assert kept[:, : own.shape[1]].tolist() == own.tolist()
            assert (kept[:, own.shape[1] :] == -1).all()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_trained_base_model_equals_the_simulation(policy: CachePolicy) -> None:
    model = AutoModelForCausalLM.from_pretrained("data/base", use_cache=True).double().eval()
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    ids = tokenizer("def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))")["input_ids"]
    row = torch.tensor(ids)
    calls = [12] + [1] * (len(row) - 12)
    truth = Simulation(model, policy)
    cache = BudgetCache(model, policy)
    assert_close(run(cache, model, row[None], calls)[0], truth.run(row, calls), atol=1e-9)
    for (layer, head), kept in truth.heads.items():
        assert cache.kept_positions(layer)[0, head].tolist() == sorted(kept.kept)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_padded_rows_read_one_token_a_call_are_what_they_are_alone(policy: CachePolicy) -> None:
    model = tiny_model("llama-gqa").double()
    ids, lengths = tokens(3, PROMPT), [PROMPT, 5, 11]
    mask = torch.stack([(torch.arange(PROMPT) >= PROMPT - length).long() for length in lengths])
    whole = BudgetCache(model, policy)
    parts = []
    with torch.no_grad():
        for at in range(PROMPT):
            positions = (mask[:, : at + 1].sum(1, keepdim=True) - 1).clamp(min=0)
            given = {"attention_mask": mask[:, : at + 1], "position_ids": positions}
            parts.append(model(ids[:, at : at + 1], past_key_values=whole, **given).logits)
    logits = torch.cat(parts, 1)
    for row, length in enumerate(lengths):
        alone = BudgetCache(model, policy)
        expected = run(alone, model, ids[row : row + 1, -length:], [1] * length)[0]
        assert_close(logits[row, -length:], expected, atol=1e-9)
        for layer in range(2):
            own, kept = alone.kept_positions(layer)[0], whole.kept_positions(layer)[row]
            assert kept[:, : own.shape[1]].tolist() == own.tolist()


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


@pytest.mark.parametrize("policy", [Full(), H2O(64), Local(64), StreamingLLM(30), Novelty(64)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_a_budget_that_is_never_full_generates_what_the_full_cache_does(
    mode: str, policy: CachePolicy
) -> None:
    model = tiny_model("llama-gqa")
    expected = generate(model, DynamicCache(), mode)
    assert generate(model, BudgetCache(model, policy), mode).tolist() == expected.tolist()


@pytest.mark.parametrize("policy", [H2O(8), Local(8), StreamingLLM(8), Novelty(8, always_recent=2)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_generation_under_a_budget_is_bounded_and_repeats_itself(mode: str, policy: CachePolicy) -> None:
    model = tiny_model("llama-gqa")
    outputs = []
    for _ in range(2):
        cache = BudgetCache(model, policy)
        outputs.append(generate(model, cache, mode).tolist())
        assert cache.kept_positions(0).shape[-1] == 8
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

BOUNDED: list[Callable[[int, int], CachePolicy]] = [
    lambda budget, recent: H2O(budget, recent=recent),
    lambda budget, recent: Local(budget),
    lambda budget, recent: StreamingLLM(budget, sink_tokens=min(4, budget - 1)),
    lambda budget, recent: Novelty(budget, always_recent=recent),
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
    cache = BudgetCache(model, policy, prefill_chunk=chunk)
    run(cache, model, tokens(rows, prompt + steps, seed), [prompt] + [1] * steps)
    for layer in range(2):
        kept = cache.kept_positions(layer)
        assert kept.shape[-1] == min(budget, prompt + steps)
        assert (kept.diff(dim=-1) > 0).all()
        newest = torch.arange(max(0, prompt + steps - policy.split(prompt).recent), prompt + steps)
        assert torch.isin(newest, kept[0, 0]).all()
    assert cache.get_seq_length() == prompt + steps


MODEL = tiny_model("llama-gqa")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_budget_times_layers_times_heads(dtype: torch.dtype) -> None:
    model = tiny_model("llama-gqa").to(dtype)
    ids, calls = tokens(3), [PROMPT] + [1] * (TOKENS - PROMPT)
    heads, size, layers, rows = 2, 8, 2, 3
    for policy, bookkeeping in ((H2O(8), 8), (Local(8), 4), (Novelty(8), 12)):
        cache = BudgetCache(model, policy)
        run(cache, model, ids, calls)
        assert cache.nbytes() == 8 * layers * heads * rows * (2 * size * dtype.itemsize + bookkeeping)


@pytest.mark.parametrize("policy", [H2O(0.2), Local(0.2), StreamingLLM(0.2), Novelty(0.2), Full()], ids=str)
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


def test_equal_scores_evict_the_oldest() -> None:
    model = tiny_model("llama-gqa").double()
    for name, parameter in model.named_parameters():
        if "q_proj" in name:
            torch.nn.init.zeros_(parameter)  # every query sees all keys alike
    cache = BudgetCache(model, H2O(heavy=3, recent=2, scoring=Score(window=2)))
    run(cache, model, tokens(1, 9), [9])
    # The last two queries gave 0..7 the same attention, so of 0..6 the newest three stay.
    assert cache.kept_positions(0)[0, 0].tolist() == [4, 5, 6, 7, 8]
    compare(model, H2O(heavy=3, recent=2, scoring=Score(window=2)), [9, 1, 1, 1, 1, 1], None)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: H2O(0), "budget=0"),
        (lambda: H2O(-3), "budget=-3"),
        (lambda: H2O(1.5), "budget=1.5"),
        (lambda: H2O(True), "budget=True"),
        (lambda: H2O("0.2"), "budget='0.2'"),
        (lambda: H2O(float("nan")), "budget=nan"),
        (lambda: H2O(8, recent=9), "recent=9 is larger than budget=8"),
        (lambda: H2O(8, recent=0.5), "fractions"),
        (lambda: H2O(heavy=4), "give budget"),
        (lambda: H2O(heavy=0.7, recent=0.7), r"heavy \+ recent=1.4"),
        (lambda: H2O(), "give budget"),
        (lambda: H2O(8, sink_tokens=8), "sink_tokens=8"),
        (lambda: H2O(heavy=4, recent=4, sink_tokens=5), "sink_tokens=5: more than the 4 heavy hitters"),
        (lambda: H2O(8, recent=6, sink_tokens=3), "sink_tokens=3: more than the 2 heavy hitters"),
        (lambda: H2O(8, sink_tokens=-1), "sink_tokens=-1"),
        (lambda: StreamingLLM(4), "sink_tokens=4"),
        (lambda: Local(0.0), "budget=0.0"),
        (lambda: Novelty(8, share=1), "share=1"),
        (lambda: Score(decay=0), "decay=0"),
        (lambda: Score(window=-1), "window=-1"),
        (lambda: Score(decay=0.5, average=True), "give one of"),
    ],
)
def test_wrong_policies_are_named(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("policy", "split"),
    [
        (H2O(10, sink_tokens=8), (8, 0, 2)),
        (H2O(10, sink_tokens=4), (4, 1, 5)),
        (H2O(0.2, sink_tokens=8), (8, 2, 10)),
        (H2O(0.04, sink_tokens=8), (3, 0, 1)),
        (H2O(heavy=0.05, recent=0.05, sink_tokens=8), (8, 0, 2)),
        (H2O(heavy=6, recent=0, sink_tokens=2), (2, 4, 0)),
        (Novelty(0.1, share=0.5, always_recent=0, sink_tokens=8), (8, 0, 2)),
    ],
    ids=str,
)
def test_recent_tokens_give_way_to_protected_ones(policy: CachePolicy, split: tuple[int, int, int]) -> None:
    assert policy.split(100) == split


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(TypeError, match="policy="):
        BudgetCache(MODEL, 0.2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prefill_chunk=0"):
        BudgetCache(MODEL, H2O(8), prefill_chunk=0)


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


@pytest.mark.parametrize("layers", [1, 2])
def test_attention_that_does_not_answer_is_found(layers: int) -> None:
    model = tiny_model("llama-gqa", num_hidden_layers=layers)
    cache = BudgetCache(model.config, H2O(8))
    with pytest.raises(ValueError, match=r"call model\.set_attn_implementation"):
        model(tokens(1, 5), past_key_values=cache)
        cache.nbytes()


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
def test_what_is_stored_is_contiguous(policy: CachePolicy) -> None:
    # Keys come as views of projections; a product over such a view copies it, every step.
    model = tiny_model("llama-gqa").eval()
    cache = BudgetCache(model, policy)
    ids = torch.arange(3, 19)[None]
    model(ids, past_key_values=cache, use_cache=True)
    model(ids[:, :1], past_key_values=cache, use_cache=True)
    for layer in cache.layers:
        assert layer.keys.is_contiguous() and layer.values.is_contiguous()
