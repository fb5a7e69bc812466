"""A bounded cache in a model against the brute-force simulation."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from cache_simulation import Simulation, check_kept, compare, compare_turns, run, tokens
from helpers import assert_close
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
from tiny_models import ARCHITECTURES, tiny_model

POLICIES = {
    "h2o": H2O(8),
    "h2o-fraction": H2O(0.4),
    "h2o-mostly-recent": H2O(heavy=2, recent=6),
    "h2o-heavy-only": H2O(heavy=6, recent=0),
    "h2o-protected": H2O(8, sink_tokens=2),
    "h2o-decayed": H2O(8, scoring=Score(decay=0.8)),
    "h2o-window": H2O(8, scoring=Score(window=3)),
    "h2o-averaged": H2O(8, scoring=Score(average=True)),
    "local": SlidingWindow(7),
    "streaming": StreamingLLM(9, sink_tokens=2),
    "novelty": Novelty(8, always_recent=2),
    "novelty-half": Novelty(0.5, share=0.5, always_recent=0, sink_tokens=1),
    "replay": Replay(8, recent_share=0.25, sink_tokens=1, share="head"),
    "replay-fraction": Replay(0.5, sink_tokens=2, decay=0.8, attention_weight=0.4, share="head"),
    "replay-layer": Replay(8, recent_share=0.25, sink_tokens=1, share="layer"),
    "replay-layer-fraction": Replay(0.5, sink_tokens=2, share="layer", own_share=0),
    "replay-model": Replay(8, recent_share=0.25, sink_tokens=1),
    "replay-model-fraction": Replay(0.4, recent_share=0.1, sink_tokens=0, own_share=0),
    "replay-model-own": Replay(8, recent_share=0.25, sink_tokens=1, own_share=1.0),
    "snapkv": SnapKV(8, window=3, pool=3),
    "snapkv-layer": SnapKV(0.5, share="layer"),
    "snapkv-model": SnapKV(8, window=3, pool=3, share="model"),
    "tova": TOVA(6),
    "expected": ExpectedAttention(8, recent_share=0.25, sink_tokens=2, future=21),
    "expected-model": ExpectedAttention(
        8, recent_share=0.25, sink_tokens=2, future=21, epsilon=0.01, share="model"
    ),
    "full": Full(),
}
TOKENS, PROMPT = 26, 17


def chunk_for(policy: CachePolicy, chunk: int | None) -> int | None:
    """A prompt in pieces, for all but policies that need all layers to have read it."""
    return None if policy.sharing.among == "model" else chunk


# Each with its whole prompt; those that may, also in pieces of one token or of five.
WHOLE = [(name, None) for name in POLICIES]
PIECES = [(name, (1, 5)[place % 2]) for place, name in enumerate(POLICIES) if chunk_for(POLICIES[name], 1)]


@pytest.mark.parametrize(("name", "chunk"), WHOLE + PIECES, ids=str)
def test_every_policy_equals_the_simulation(name: str, chunk: int | None) -> None:
    policy = POLICIES[name]
    model = tiny_model("llama-gqa").double()
    compare(model, policy, [PROMPT] + [1] * (TOKENS - PROMPT), chunk)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_equals_the_simulation(architecture: str) -> None:
    model = tiny_model(architecture).double()
    compare(model, H2O(8), [PROMPT] + [1] * (TOKENS - PROMPT), None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_turns_queries_as_the_simulation(architecture: str) -> None:
    compare(tiny_model(architecture).double(), POLICIES["expected"], [PROMPT, 1, 1, 6, 1], None)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_one_row_with_one_key_value_head_equals_the_simulation(policy: CachePolicy) -> None:
    # A slot of it is a view without gaps, which reading and writing at once would mix up.
    compare(tiny_model("gemma-mqa").double(), policy, [PROMPT] + [1] * (TOKENS - PROMPT), None, rows=1)


SHORT_TURNS = ([1] * 20, [4, 4, 4, 1, 1, 9, 1, 1])
# A fraction grows by more than a turn brings, so slots are free that no token may claim.
LONG_TURNS = [6, *[1] * 14, 3, 1, 1, 1, 2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("name", "calls"),
    [(name, LONG_TURNS) for name in POLICIES]
    + [(name, SHORT_TURNS[place % 2]) for place, name in enumerate(POLICIES)],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)}-calls",
)
def test_several_turns_equal_the_simulation(name: str, calls: list[int]) -> None:
    compare(tiny_model("llama-gqa").double(), POLICIES[name], calls, None)


SMALLER = {
    "h2o": (H2O(12), H2O(5)),
    "streaming": (StreamingLLM(12, sink_tokens=2), StreamingLLM(5, sink_tokens=2)),
    "tova": (TOVA(9), TOVA(4)),
    "snapkv": (SnapKV(12, window=6, pool=3), SnapKV(4, window=6, pool=3)),
    "expected": (
        ExpectedAttention(12, sink_tokens=2, future=21),
        ExpectedAttention(5, sink_tokens=2, future=21),
    ),
    "novelty": (Novelty(12), Novelty(7)),
    "replay-head": (Replay(12, share="head"), Replay(7, share="head")),
    "replay-layer": (Replay(12, share="layer"), Replay(7, share="layer")),
    "replay-model": (Replay(12), Replay(7)),
}


@pytest.mark.parametrize("decoded", [0, 2], ids=["at-once", "decoded"])  # before the limit, and after it
@pytest.mark.parametrize(("policy", "smaller"), SMALLER.values(), ids=SMALLER)
def test_a_limit_counts_from_the_next_turn_on(
    policy: CachePolicy, smaller: CachePolicy, decoded: int
) -> None:
    before, after = [15, *[1] * decoded], [*[1] * decoded, 6, 1, 3]
    calls, model = before + after, tiny_model("llama-gqa").double()
    ids, cache = tokens(2, sum(calls)), BudgetCache(model, policy)
    logits = [run(cache, model, ids[:, : sum(before)], before)]
    cache.limit(smaller)
    logits.append(run(cache, model, ids[:, sum(before) :], after))
    for row in range(2):
        truth = Simulation(model, policy, limits={1 + 2 * decoded: smaller})
        assert_close(torch.cat(logits, 1)[row], truth.run(ids[row], calls), atol=1e-9)
        check_kept(cache, row, truth)
    assert cache.policy is smaller


@pytest.mark.parametrize(("policy", "smaller"), SMALLER.values(), ids=SMALLER)
def test_a_limit_waits_for_the_next_turn_of_each_row(policy: CachePolicy, smaller: CachePolicy) -> None:
    turns = [[15, 15, 15], [6, 1, 0], [1, 1, 1], [4, 4, 4], [1, 1, 1]]
    compare_turns(tiny_model("llama-gqa").double(), policy, turns, "left", limit=(1, smaller))


@torch.no_grad()
def test_rows_that_change_places_take_their_limits_along() -> None:
    model, ids, real = tiny_model("llama-gqa"), tokens(2, 25), torch.ones(2, 25, dtype=torch.long)
    real[1, 15:20] = 0
    cache = BudgetCache(model, H2O(12))
    model(ids[:, :15], past_key_values=cache)
    cache.limit(H2O(5))
    model(ids[:, 15:21], attention_mask=real[:, :21], past_key_values=cache)
    assert (cache.kept_positions(0) >= 0).sum(-1).tolist() == [[5, 5], [12, 12]]
    cache.batch_select_indices(torch.tensor([1, 0]))
    model(ids[:, 21:], attention_mask=real.flip(0), past_key_values=cache)
    assert (cache.kept_positions(0) >= 0).sum(-1).tolist() == [[5, 5], [5, 5]]


@pytest.mark.parametrize(
    ("policy", "other"),
    [
        (H2O(8), StreamingLLM(6)),
        (H2O(8), H2O(5, scoring=Score(window=3))),
        (H2O(8, scoring=Score(window=3)), H2O(5)),
        (Replay(8), Replay(6, share="head")),
        (Replay(8), Replay(6, own_share=0.5)),
        (Replay(8), Replay(6, decay=0.5)),
        (SnapKV(8), SnapKV(6, pool=3)),
        (ExpectedAttention(8), ExpectedAttention(6, future=3)),
        (Novelty(8), Novelty(6, always_recent=2)),
    ],
    ids=str,
)
def test_a_limit_changes_nothing_but_sizes(policy: CachePolicy, other: CachePolicy) -> None:
    cache = BudgetCache(tiny_model("llama-gqa"), policy)
    words = f"policy={other}: this cache was filled under {policy}; make a new one"
    with pytest.raises(ValueError, match=re.escape(words)):
        cache.limit(other)
    assert cache.policy is policy


@pytest.mark.parametrize(
    ("policy", "smaller"),
    [
        (H2O(8), H2O(heavy=2, recent=3)),
        (H2O(8, recent=2), H2O(5, recent=1, sink_tokens=2)),
        (H2O(0.5), H2O(5)),
        (StreamingLLM(8), StreamingLLM(3, sink_tokens=1)),
        (Full(), Full()),
    ],
    ids=str,
)
def test_sizes_of_a_limit_may_be_any(policy: CachePolicy, smaller: CachePolicy) -> None:
    cache = BudgetCache(tiny_model("llama-gqa"), policy)
    cache.limit(smaller)
    assert cache.policy is smaller


# New tokens of three rows, turn by turn: rows of one token, rows without any, decoding in between.
TURNS = [[9, 4, 1], [1, 1, 3], [5, 1, 0], [1, 1, 1], [1, 1, 1], [0, 7, 2], [1, 1, 1]]
ONE_TOKEN_A_CALL = [[int(call >= first) for first in (0, 6, 3)] for call in range(12)]


# Each on the left, and on one of the other sides, which fewer callers use.
SIDES = [(name, "left", 4) for name in POLICIES]
SIDES += [(name, *(("right", None), ("middle", 3))[place % 2]) for place, name in enumerate(POLICIES)]


@pytest.mark.parametrize(("name", "side", "chunk"), SIDES, ids=str)
def test_turns_of_padded_rows_are_what_each_row_is_alone(name: str, side: str, chunk: int | None) -> None:
    policy = POLICIES[name]
    compare_turns(tiny_model("llama-gqa").double(), policy, TURNS, side, chunk_for(policy, chunk))


# Sinks give way to a small budget, and what a larger one would have kept is gone.
GROWING = {
    "fraction": (StreamingLLM(0.2), None),
    "limit": (StreamingLLM(3, sink_tokens=1), (1, StreamingLLM(9))),
}


@pytest.mark.parametrize("positions", ["text", "cache"])
@pytest.mark.parametrize("lengths", [[10], [10, 7], [10, 2, 10]], ids=str)
@pytest.mark.parametrize(("policy", "limit"), GROWING.values(), ids=GROWING)
def test_a_budget_that_grows_keeps_the_sinks_that_are_there(
    policy: CachePolicy, limit: tuple[int, CachePolicy] | None, lengths: list[int], positions: str
) -> None:
    turns = [lengths, [30] * len(lengths), *[[1] * len(lengths)] * 8, [4] * len(lengths)]
    model = tiny_model("llama-gqa").double()
    atol = 1e-9 if positions == "text" else 1e-5
    compare_turns(model, policy, turns, "left", positions=positions, limit=limit, atol=atol)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_padded_rows_read_one_token_a_call_are_what_they_are_alone(policy: CachePolicy) -> None:
    compare_turns(tiny_model("llama-gqa").double(), policy, ONE_TOKEN_A_CALL, "left")


@pytest.fixture(scope="module")
def base_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained("data/base", use_cache=True).double().eval()


@pytest.fixture(scope="module")
def program() -> torch.Tensor:
    text = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))"
    return torch.tensor(AutoTokenizer.from_pretrained("data/base")(text)["input_ids"])


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_trained_base_model_equals_the_simulation(
    policy: CachePolicy, base_model: PreTrainedModel, program: torch.Tensor
) -> None:
    calls = [12] + [1] * (len(program) - 12)
    truth = Simulation(base_model, policy)
    cache = BudgetCache(base_model, policy)
    assert_close(run(cache, base_model, program[None], calls)[0], truth.run(program, calls), atol=1e-9)
    check_kept(cache, 0, truth)


@torch.no_grad()
def test_a_layer_whose_largest_head_has_an_even_share_of_slots_equals_the_simulation() -> None:
    # One of them is free: it is not as if all slots of a layer of equal heads were filled.
    model = tiny_model("llama-gqa").double()
    policy = Replay(8, recent_share=0.5, sink_tokens=1, attention_weight=0.4)
    cache = BudgetCache(model, policy)
    run(cache, model, tokens(2, 22)[:, :15], [15])
    assert [max(layer.packed().slots) for layer in cache.budget_layers] == [11, 8]
    compare(model, policy, [15, 6, 1])


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


@pytest.mark.parametrize(
    "policy",
    [H2O(8), StreamingLLM(6), H2O(0.4), Novelty(8), Replay(8), Replay(0.5, share="layer"), Full()],
    ids=str,
)
def test_a_conversation_in_a_batch_is_what_each_row_is_alone(policy: CachePolicy) -> None:
    model = tiny_model("llama-gqa").double()
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    turns = [tokens(2, 12), tokens(2, 6, seed=4)]
    lengths = [[8, 12], [3, 6]]
    rows, masks = torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)
    cache = BudgetCache(model, policy)
    for turn, length in zip(turns, lengths, strict=True):
        # The last written token has not been read yet: it comes with the padding and the turn after it.
        real = torch.arange(turn.shape[1]) >= turn.shape[1] - torch.tensor(length)[:, None]
        rows, masks = torch.cat([rows, turn * real], 1), torch.cat([masks, real.long()], 1)
        rows = model.generate(rows, attention_mask=masks, past_key_values=cache, **options)
        masks = torch.cat([masks, torch.ones(2, 6, dtype=torch.long)], 1)
    for row in range(2):
        alone, said = BudgetCache(model, policy), torch.zeros(1, 0, dtype=torch.long)
        for turn, length in zip(turns, lengths, strict=True):
            said = torch.cat([said, turn[row : row + 1, -length[row] :]], 1)
            real = torch.ones_like(said)  # the filler, too, may be written
            said = model.generate(said, attention_mask=real, past_key_values=alone, **options)
        assert rows[row, masks[row].bool()].tolist() == said[0].tolist()
        for layer in range(2):
            kept, own = cache.kept_positions(layer)[row], alone.kept_positions(layer)[0]
            assert kept[:, : own.shape[1]].tolist() == own.tolist()


@pytest.mark.parametrize(
    "policy",
    [H2O(6), StreamingLLM(6), Novelty(6), SlidingWindow(6), Replay(6, sink_tokens=1, share="head")],
    ids=str,
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_no_number_stays_bounded_and_spoils_no_other(policy: CachePolicy, value: float) -> None:
    model, ids = tiny_model("llama-gqa").double(), tokens(2, 20)
    embedded = model.get_input_embeddings()(ids).detach()
    broken = embedded.clone()
    broken[0, 5] = value
    found = []
    for inputs in (embedded, broken):
        cache = BudgetCache(model, policy)
        logits, seen = [], 0
        for part in inputs.split([14, *[1] * 6], dim=1):
            with torch.no_grad():
                logits.append(model(inputs_embeds=part, past_key_values=cache).logits[1])
            seen += part.shape[1]
            newest = torch.arange(seen - policy.split(14).recent, seen)
            for layer in range(2):
                kept = cache.kept_positions(layer)
                assert kept.shape[-1] == 6 and (kept.diff(dim=-1) > 0).all()
                assert (kept[..., -len(newest) :] == newest).all()
        found.append(torch.cat(logits))
    assert torch.equal(found[0], found[1])


def test_the_smallest_caches_equal_the_simulation() -> None:
    model = tiny_model("llama-gqa").double()
    for policy in (
        H2O(1),
        SlidingWindow(1),
        StreamingLLM(0.01),
        Novelty(1),
        *(Replay(0.01, share=share) for share in ("head", "layer", "model")),
        H2O(heavy=1, recent=0),
        SnapKV(1),
        TOVA(1),
        ExpectedAttention(0.01, future=3),
    ):
        compare(model, policy, [3, 1, 1, 1, 4, 1], rows=1)
        compare_turns(model, policy, [[3, 1], [1, 1], [0, 4], [1, 1]], "left", chunk_for(policy, 2))
