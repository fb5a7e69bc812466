"""A filled BudgetCache can be copied, pickled and carried over between modes, as a DynamicCache can."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from sinklora.cache.attention_scores import Score
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
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import VOCABULARY, tiny_model

PROMPT = 12
POLICIES = {
    "full": Full(),
    "h2o": H2O(8),
    "h2o-window": H2O(8, scoring=Score(window=3)),
    "local": Local(7),
    "streaming": StreamingLLM(9, sink_tokens=2),
    "novelty": Novelty(8, always_recent=2),
    "replay": Replay(8, recent_share=0.25, sink_tokens=1, share="head"),
    "replay-layer": Replay(8, recent_share=0.25, sink_tokens=1, share="layer"),
    "replay-model": Replay(8, recent_share=0.25, sink_tokens=1),
    "snapkv-layer": SnapKV(8, share="layer"),
    "tova": TOVA(8),
    "expected": ExpectedAttention(8),
}
MODEL = tiny_model("llama-gqa")
CACHES: dict[str, Callable[[], Cache]] = {"dynamic": DynamicCache}
CACHES |= {name: (lambda policy=policy: BudgetCache(MODEL, policy)) for name, policy in POLICIES.items()}


def tokens(length: int = PROMPT, seed: int = 3) -> Tensor:
    return torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(seed))


def call(cache: Cache, ids: Tensor) -> Tensor:
    return MODEL(ids, past_key_values=cache, use_cache=True).logits


@torch.no_grad()
def steps(cache: Cache, count: int = 5) -> list[Tensor]:
    """Logits of a second turn and some decoded tokens."""
    new = tokens(count + 3, seed=9)
    return [call(cache, part) for part in (new[:, :3], *new[:, 3:].split(1, dim=1))]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    assert all(torch.equal(x, y) for x, y in zip(actual, expected, strict=True))


def pickled(cache: Cache) -> Cache:
    return pickle.loads(pickle.dumps(cache))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["copied", "pickled"])
@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_a_duplicate_goes_on_by_itself(
    make: Callable[[], Cache], duplicate: Callable[[Cache], Cache]
) -> None:
    whole = make()
    with torch.no_grad():
        call(whole, tokens())
    expected = steps(whole)
    cache = make()
    with torch.no_grad():
        call(cache, tokens())
    other = duplicate(cache)
    assert_equal(steps(other), expected)
    assert cache.get_seq_length() == PROMPT  # what the copy did has not touched it
    assert_equal(steps(cache), expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled], ids=["copied", "pickled"])
def test_an_empty_cache_is_duplicated(duplicate: Callable[[Cache], Cache]) -> None:
    cache = BudgetCache(MODEL, H2O(8))
    assert_equal(steps(duplicate(cache)), steps(cache))


def test_a_pickle_holds_the_contents_and_nothing_of_the_model() -> None:
    cache = BudgetCache(MODEL, Full())
    with torch.no_grad():
        call(cache, tokens())
    stored = pickle.dumps(cache)
    assert cache.nbytes() < len(stored) < 2 * cache.nbytes() + 10_000
    assert b"llama" not in stored.lower()


FILLED_UNDER = {
    "inference mode": (torch.inference_mode, torch.no_grad),
    "no_grad": (torch.no_grad, torch.inference_mode),
}


@pytest.mark.parametrize("modes", FILLED_UNDER.values(), ids=FILLED_UNDER)
@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_a_cache_goes_on_in_another_mode(make: Callable[[], Cache], modes: tuple[type, type]) -> None:
    expected = make()
    with torch.no_grad():
        call(expected, tokens())
    cache = make()
    with modes[0]():
        call(cache, tokens())
        call(cache, tokens(1, seed=4))
    with torch.no_grad():
        call(expected, tokens(1, seed=4))
    with modes[1]():
        actual = call(cache, tokens(1, seed=5)).clone()
    with torch.no_grad():
        assert torch.equal(actual, call(expected, tokens(1, seed=5)))
    assert_equal(steps(cache), steps(expected))


@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_a_prefix_read_in_inference_mode_serves_generate(make: Callable[[], Cache]) -> None:
    ids = tokens()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad():
        cache = make()
        call(cache, ids[:, :-1])
        expected = MODEL.generate(ids, past_key_values=cache, **options)
    with torch.inference_mode():
        prefix = make()
        call(prefix, ids[:, :-1])
    for _ in range(2):
        written = MODEL.generate(ids, past_key_values=copy.deepcopy(prefix), **options)
        assert written.tolist() == expected.tolist()


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_gradients_are_refused_instead_of_cut(policy: CachePolicy) -> None:
    cache = BudgetCache(MODEL, policy)
    with pytest.raises(ValueError, match=r"gives no gradients: call the model under torch.no_grad\(\)"):
        call(cache, tokens())
    assert cache.get_seq_length() == 0
    frozen = copy.deepcopy(MODEL).requires_grad_(False)
    inputs = frozen.get_input_embeddings()(tokens()).requires_grad_()
    with pytest.raises(ValueError, match="gives no gradients"):
        frozen(inputs_embeds=inputs, past_key_values=BudgetCache(frozen, policy))
    with torch.no_grad():
        expected = call(cache, tokens())
    # Nothing asks for gradients here, so nothing is lost.
    assert torch.equal(frozen(tokens(), past_key_values=BudgetCache(frozen, policy)).logits, expected)


@pytest.mark.parametrize("decoded", [0, 1, 12])
@pytest.mark.parametrize(
    "make",
    [
        *CACHES.values(),
        lambda: BudgetCache(MODEL, H2O(8), compiled=True),
        lambda: BudgetCache(MODEL, H2O(8), prefill_chunk=5),
        lambda: BudgetCache(MODEL, H2O(8), positions="cache"),
    ],
    ids=[*CACHES, "compiled", "chunks", "inside"],
)
def test_its_memory_is_free_as_soon_as_it_is_let_go_of(make: Callable[[], Cache], decoded: int) -> None:
    """Not at the next garbage collection: until then a prompt's tokens would stay beside the next one's."""
    cache = make()
    gc.collect()
    gc.disable()
    try:
        with torch.inference_mode():
            for part in (tokens(), *tokens(decoded).split(1, dim=1)[:decoded]):
                call(cache, part)
        held = [
            weakref.ref(kept) for layer in cache.layers for kept in (layer, layer.keys) if kept is not None
        ]
        assert all(ref() is not None for ref in held)
        del cache
        assert [ref() for ref in held if ref() is not None] == []
    finally:
        gc.enable()
