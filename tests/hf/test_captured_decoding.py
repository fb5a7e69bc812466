"""A bounded cache decodes in one graph: compiled once, nothing looked at by the host, the same tokens."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig, PreTrainedModel

from helpers import assert_close, rest_slow
from sinklora.cache.attention_scores import Score
from sinklora.cache.expected_attention import ExpectedAttention
from sinklora.cache.filling_step import FillingStep
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.novelty import Novelty
from sinklora.cache.policies import CachePolicy
from sinklora.cache.replay import Replay
from sinklora.cache.sliding_window import Local
from sinklora.cache.snapkv import SnapKV
from sinklora.cache.steady_step import SteadyStep
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.cache.tova import TOVA
from sinklora.hf.budget_cache import BudgetCache
from tiny_models import VOCABULARY, tiny_model

PROMPT = 20
MAIN = {"h2o": H2O(8), "local": Local(7), "streaming": StreamingLLM(9, sink_tokens=2)}
OTHERS = {
    "h2o-window": H2O(8, scoring=Score(window=3)),
    "h2o-decayed": H2O(8, scoring=Score(decay=0.8)),
    "h2o-averaged": H2O(8, scoring=Score(average=True)),
    "novelty": Novelty(8, always_recent=2),
    "replay": Replay(8, recent_share=0.25, sink_tokens=1, share="head"),
    "replay-layer": Replay(8, recent_share=0.25, sink_tokens=1, share="layer"),
    "replay-model": Replay(8, recent_share=0.25, sink_tokens=1),
    "snapkv": SnapKV(8),
    "snapkv-layer": SnapKV(8, share="layer"),
    "tova": TOVA(8),
    "expected": ExpectedAttention(8),
}
FRACTIONS = {
    "h2o": H2O(0.4),
    "streaming": StreamingLLM(0.4, sink_tokens=2),
    "novelty": Novelty(0.4),
    "replay": Replay(0.4, share="head"),
    "replay-layer": Replay(0.4, share="layer"),
    "replay-model": Replay(0.4, share="model"),
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def double_model(architecture: str = "llama-gqa", **changes: object) -> PreTrainedModel:
    return tiny_model(architecture, max_position_embeddings=512, **changes).double()


MODEL = double_model()
ONE_LAYER = double_model(num_hidden_layers=1)


def smallest_model(policy: CachePolicy) -> PreTrainedModel:
    """Two layers where they share slots; else one, for each takes a compiler as long again."""
    return MODEL if policy.sharing.among == "model" else ONE_LAYER


def tokens(rows: int = 3, length: int = PROMPT, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def compiled(model: PreTrainedModel, backend: Any = "eager") -> Callable[..., Any]:
    """The model, compiled so that a break in the graph is an error."""
    return torch.compile(model.__call__, backend=backend, fullgraph=True)


@torch.no_grad()
def decode(call: Callable[..., Any], cache: BudgetCache, first: Tensor, steps: int) -> Tensor:
    """Greedy tokens [B, steps] after `first` [B, 1]."""
    written = [first.clone(memory_format=torch.contiguous_format)]
    for _ in range(steps):
        written.append(call(written[-1], past_key_values=cache).logits[:, -1:].argmax(-1))
    return torch.cat(written[1:], 1)


@torch.no_grad()
def read(model: PreTrainedModel, policy: CachePolicy, ids: Tensor, **options: Any) -> BudgetCache:
    """A cache that has read a prompt; `mask` among the options is the prompt's."""
    mask = options.pop("mask", None)
    cache = BudgetCache(model, policy, **options)
    model(ids, attention_mask=mask, past_key_values=cache)
    return cache


def assert_same(one: BudgetCache, other: BudgetCache) -> None:
    assert int(one.get_seq_length()) == int(other.get_seq_length())
    for layer in range(len(one.budget_layers)):
        assert one.kept_positions(layer).tolist() == other.kept_positions(layer).tolist()


def one_graph() -> bool:
    return counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


# --- one graph ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "architecture", "rows"),
    rest_slow(
        [
            ("h2o", "llama-mha", 3),
            ("local", "llama-gqa", 1),
            ("streaming", "llama-mha", 3),
            ("h2o", "llama-gqa", 1),
        ]
    ),
)
def test_two_hundred_steps_are_one_graph(name: str, architecture: str, rows: int) -> None:
    policy, model, ids = MAIN[name], double_model(architecture), tokens(rows)
    ours, eager = (read(model, policy, ids) for _ in range(2))
    call = compiled(model)
    start = decode(call, ours, ids[:, :1], 1)
    with torch._dynamo.config.patch(error_on_recompile=True):
        written = decode(call, ours, start, 199)
    expected = decode(model, eager, ids[:, :1], 200)
    assert torch.cat([start, written], 1).tolist() == expected.tolist()
    assert_same(ours, eager)
    assert one_graph()


@pytest.mark.slow
def test_generated_code_does_the_same() -> None:
    ours, eager = (read(ONE_LAYER, H2O(8), tokens()) for _ in range(2))
    first = tokens()[:, :1]
    assert (
        decode(compiled(ONE_LAYER, "inductor"), ours, first, 30).tolist()
        == decode(ONE_LAYER, eager, first, 30).tolist()
    )
    assert_same(ours, eager)
    assert one_graph()


@pytest.mark.parametrize(
    ("name", "positions"),
    rest_slow([(n, "cache") for n in (*MAIN, "replay")] + [(n, "text") for n in OTHERS], always=2),
)
def test_every_policy_is_one_graph(name: str, positions: str) -> None:
    policy = (MAIN | OTHERS)[name]
    model = smallest_model(policy)
    ours, eager = (read(model, policy, tokens(), positions=positions) for _ in range(2))
    first = tokens()[:, :1]
    assert decode(compiled(model), ours, first, 15).tolist() == decode(model, eager, first, 15).tolist()
    assert_same(ours, eager)
    assert one_graph()


@pytest.mark.parametrize("policy", rest_slow(FRACTIONS.values(), always=2), ids=FRACTIONS)
def test_rows_of_other_lengths_are_one_graph(policy: CachePolicy) -> None:
    mask = torch.ones(3, PROMPT, dtype=torch.long)
    mask[1, :9] = 0
    model = smallest_model(policy)
    ours, eager = (read(model, policy, tokens() * mask, mask=mask) for _ in range(2))
    first = tokens()[:, :1]
    assert decode(compiled(model), ours, first, 15).tolist() == decode(model, eager, first, 15).tolist()
    assert_same(ours, eager)
    assert one_graph()


@pytest.mark.parametrize("policy", MAIN.values(), ids=MAIN)
def test_another_cache_and_another_prompt_take_the_graph_that_is_there(policy: CachePolicy) -> None:
    call = compiled(MODEL)
    decode(call, read(MODEL, policy, tokens()), tokens()[:, :1], 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (31, 12):
            ids = tokens(length=length, seed=length)
            ours, eager = (read(MODEL, policy, ids) for _ in range(2))
            assert decode(call, ours, ids[:, :1], 9).tolist() == decode(MODEL, eager, ids[:, :1], 9).tolist()
            assert_same(ours, eager)


@pytest.mark.parametrize(
    "name", rest_slow(["h2o", "replay-model", "h2o-window", "novelty", "replay", "streaming"], always=2)
)
def test_what_a_step_writes_stays_where_it_is(name: str) -> None:
    # CUDA graphs replay writes to an address only where they are told that it stays.
    written: list[Tensor] = []

    def watch(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        def run(*inputs: Tensor) -> Any:
            before = [x._version for x in inputs]
            outputs = graph(*inputs)
            written.extend(x for x, old in zip(inputs, before, strict=True) if x._version != old)
            return outputs

        return run

    policy = (MAIN | OTHERS)[name]
    model = smallest_model(policy)
    cache = read(model, policy, tokens())
    decode(compiled(model, watch), cache, tokens()[:, :1], 2)
    assert len({x.data_ptr() for x in written}) * 2 == len(written) >= 2 * 4
    assert all(x._dynamo_static_input_type == "unguarded" for x in written)  # type: ignore[attr-defined]


# --- before, between and after ------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", rest_slow(["h2o-window", "replay", "replay-model", "streaming"]))
def test_what_follows_compiled_steps_is_what_follows_eager_ones(name: str) -> None:
    ours, eager = (read(MODEL, (MAIN | OTHERS)[name], tokens()) for _ in range(2))
    call, turn = compiled(MODEL), tokens(length=5, seed=2)
    assert call(turn[:, :1], past_key_values=ours).logits.shape == (3, 1, VOCABULARY)
    decode(MODEL, eager, turn[:, :1], 1)
    for cache, steps in ((ours, call), (eager, MODEL)):
        decode(steps, cache, turn[:, 1:2], 4)
        decode(MODEL, cache, turn[:, 2:3], 2)  # eager after compiled
    assert_same(ours, eager)
    decode(call, ours, turn[:, :1], 3)
    decode(MODEL, eager, turn[:, :1], 3)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    for cache in (ours, eager, *copies):
        cache.reorder_cache(torch.tensor([2, 0, 1]))
    for cache in (ours, *copies):
        assert_same(cache, eager)
    expected = MODEL(turn, past_key_values=eager).logits
    for cache in (ours, *copies):
        assert_close(MODEL(turn, past_key_values=cache).logits, expected, atol=1e-9)
        assert_same(cache, eager)
    assert decode(call, ours, turn[:, :1], 4).tolist() == decode(MODEL, eager, turn[:, :1], 4).tolist()


@torch.no_grad()
def test_a_cache_filled_in_inference_mode_is_compiled() -> None:
    with torch.inference_mode():
        ours = read(MODEL, H2O(8), tokens())
    eager, first = read(MODEL, H2O(8), tokens()), tokens()[:, :1]
    assert decode(compiled(MODEL), ours, first, 5).tolist() == decode(MODEL, eager, first, 5).tolist()
    assert one_graph()


@torch.no_grad()
def test_a_compiled_model_reads_a_prompt_whose_slots_all_layers_share() -> None:
    policy, first = Replay(8, sink_tokens=1), tokens()[:, :1]
    ours, eager = BudgetCache(MODEL, policy), read(MODEL, policy, tokens())
    pieces = torch.compile(MODEL.__call__, backend="eager")
    pieces(tokens(), past_key_values=ours)
    assert_same(ours, eager)
    assert decode(pieces, ours, first, 4).tolist() == decode(MODEL, eager, first, 4).tolist()
    assert_same(ours, eager)


@pytest.mark.slow
def test_a_cache_that_grows_breaks_the_graph_and_nothing_else() -> None:
    policy = H2O(30)
    ours, eager = (read(MODEL, policy, tokens()) for _ in range(2))
    first = tokens()[:, :1]
    with pytest.raises(torch._dynamo.exc.Unsupported, match="constant shapes only when"):
        decode(compiled(MODEL), ours, first, 1)
    ours = read(MODEL, policy, tokens())
    pieces = torch.compile(MODEL.__call__, backend="eager")
    # Rows are full after ten of them.
    assert decode(pieces, ours, first, 15).tolist() == decode(MODEL, eager, first, 15).tolist()
    assert_same(ours, eager)


# --- generate -----------------------------------------------------------------------------------------------


def on_any_device(backend: str = "eager") -> CompileConfig:
    """transformers compiles on accelerators alone, but for this flag, by which it tests itself."""
    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True
    return config


def generate(model: PreTrainedModel, cache: BudgetCache, ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    settings = {"max_new_tokens": 30, "min_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, past_key_values=cache, **settings, **options)


LATER_FULL = {"h2o-later": H2O(24), "local-later": Local(24), "streaming-later": StreamingLLM(24)}
GENERATED = MAIN | LATER_FULL | {"novelty-later": Novelty(24), "h2o-fraction": H2O(0.4)}
GENERATED |= {"replay-later": Replay(24, share="head"), "replay-layer": OTHERS["replay-layer"]}
GENERATED |= {"replay-layer-later": Replay(24, share="layer")}


@pytest.mark.parametrize(
    ("name", "padding", "layers"),
    rest_slow(
        [
            ("h2o", 0, 2),
            ("streaming", 5, 1),
            ("h2o-later", 0, 1),
            ("streaming-later", 5, 1),
            ("novelty-later", 5, 1),
            ("replay-later", 5, 1),
            ("replay-layer", 5, 1),
            ("replay-layer-later", 5, 2),
        ],
        always=3,
    ),
)
def test_generate_compiles_its_decoding(name: str, padding: int, layers: int) -> None:
    model, policy = double_model(num_hidden_layers=layers), GENERATED[name]
    for seed in range(2):  # the second prompt takes the graph of the first
        ids = tokens(seed=seed)
        mask = torch.ones_like(ids)
        mask[1, :padding] = 0
        ours, eager = (BudgetCache(model, policy, compiled=flag) for flag in (True, False))
        written = generate(model, ours, ids * mask, mask, compile_config=on_any_device())
        assert written.tolist() == generate(model, eager, ids * mask, mask).tolist()
        assert_same(ours, eager)
    assert one_graph()


def test_generate_compiles_with_inductor() -> None:
    model, ids = ONE_LAYER, tokens()
    ours, eager = (BudgetCache(model, H2O(24), compiled=flag) for flag in (True, False))
    config = on_any_device("inductor")
    written = generate(model, ours, ids, torch.ones_like(ids), compile_config=config)
    assert written.tolist() == generate(model, eager, ids, torch.ones_like(ids)).tolist()
    assert one_graph()


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("policy", GENERATED.values(), ids=GENERATED)
def test_what_could_be_compiled_need_not_be(policy: CachePolicy, padding: int) -> None:
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    ours, eager = (BudgetCache(MODEL, policy, compiled=flag) for flag in (True, False))
    assert ours.is_compileable and not eager.is_compileable
    assert (
        generate(MODEL, ours, ids * mask, mask).tolist() == generate(MODEL, eager, ids * mask, mask).tolist()
    )
    assert_same(ours, eager)


def test_slots_of_the_whole_budget_are_there_from_the_first_step_on() -> None:
    cache = read(MODEL, H2O(24), tokens(), compiled=True)
    kinds = []
    for _ in range(6):
        kinds.append(type(cache.budget_layers[0].step))
        assert cache.budget_layers[0].keys.shape[2] == 25
        decode(MODEL, cache, tokens()[:, :1], 1)
    assert kinds == [FillingStep] * 4 + [SteadyStep] * 2


@torch.no_grad()
def test_masks_of_another_kind_are_refused() -> None:
    cache = BudgetCache(MODEL, H2O(8), compiled=True)
    window = torch.ones(PROMPT, PROMPT, dtype=torch.bool).tril().triu(-3).expand(3, 1, -1, -1)
    with pytest.raises(ValueError, match="4-D attention mask"):
        MODEL(tokens(), attention_mask=window, past_key_values=cache)
    with pytest.raises(ValueError, match="4-D attention mask"):
        MODEL(tokens(), attention_mask=window.double(), past_key_values=cache)


def test_a_cache_without_a_budget_is_not_compiled() -> None:
    with pytest.raises(ValueError, match=r"compiled=True: Full.* grows with every token"):
        BudgetCache(MODEL, Full(), compiled=True)
