"""A model that was called with a BudgetCache is, in every other call, what it was before."""

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, OPTConfig, PreTrainedModel, StaticCache

import sinklora
from helpers import assert_close
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.sliding_window import Local
from sinklora.hf.architecture import honours_interface
from sinklora.hf.attention import CACHE_NAME
from sinklora.hf.attention_switch import AttentionSwitch
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.prepared_models import enable_budget_caches
from sinklora.hf.rope import find_transformer
from tiny_models import ARCHITECTURES, VOCABULARY, tiny_model

PROMPT = 12


def tokens(rows: int = 2, length: int = PROMPT, seed: int = 3) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def call(model: nn.Module, cache: object, ids: Tensor | None = None) -> Tensor:
    return model(tokens() if ids is None else ids, past_key_values=cache).logits


def implementation(model: nn.Module) -> str:
    return find_transformer(model).config._attn_implementation


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_call_with_a_cache_changes_no_other_call(architecture: str, attention: str) -> None:
    model = tiny_model(architecture)
    model.set_attn_implementation(attention)
    config = model.config.to_json_string()
    mask = torch.ones_like(tokens())
    mask[1, :4] = 0
    with torch.no_grad():
        before = model(tokens(), attention_mask=mask).logits
    expected = call(model, DynamicCache())
    cache = BudgetCache(model, Full())
    assert_close(call(model, cache), expected, atol=2e-5)
    assert implementation(model) == attention
    assert model.config.to_json_string() == config
    with torch.no_grad():
        assert torch.equal(model(tokens(), attention_mask=mask).logits, before)
    assert torch.equal(call(model, DynamicCache()), expected)


@torch.no_grad()
def test_eager_models_return_their_attentions_again() -> None:
    model = tiny_model("llama-gqa")
    model.set_attn_implementation("eager")
    before = model(tokens(), output_attentions=True).attentions
    model.generate(tokens(), past_key_values=BudgetCache(model, H2O(8)), max_new_tokens=3)
    model.config.output_attentions = True  # which transformers allows under "eager" alone
    after = model(tokens()).attentions
    assert len(after) == len(before) == 2
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first, second)


@torch.no_grad()
def test_attentions_are_refused_where_a_cache_has_none() -> None:
    model = tiny_model("llama-gqa")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"output_attentions=True .* with a BudgetCache, which returns none"):
        model(tokens(), output_attentions=True, past_key_values=BudgetCache(model, H2O(8)))
    model.config.output_attentions = True
    with pytest.raises(ValueError, match="output_attentions=True"):
        model.generate(tokens(), past_key_values=BudgetCache(model, H2O(8)), max_new_tokens=3)
    written = model(tokens(), output_attentions=False, past_key_values=BudgetCache(model, H2O(8)))
    assert written.logits.shape[1] == tokens().shape[1]


class Interrupted(nn.Module):
    """Something that ends a forward pass half-way, the second time it is called."""

    def __init__(self, layer: nn.Module, error: BaseException) -> None:
        super().__init__()
        self.layer, self.error, self.calls = layer, error, 0

    def forward(self, *args: object, **kwargs: object) -> object:
        self.calls += 1
        if self.calls == 2:
            raise self.error
        return self.layer(*args, **kwargs)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=repr)
def test_a_call_that_ends_half_way_restores_the_attention(error: BaseException) -> None:
    model = tiny_model("llama-gqa")
    expected = call(model, None)
    model.model.layers[1].mlp = Interrupted(model.model.layers[1].mlp, error)
    cache = BudgetCache(model, Full())
    call(model, cache)
    with pytest.raises(type(error)):
        call(model, cache)
    if isinstance(error, Exception):  # PyTorch runs no hooks for others: the next call restores
        assert implementation(model) == "sdpa"
    assert torch.equal(call(model, None), expected)
    assert implementation(model) == "sdpa"


def test_a_half_filled_cache_is_refused_until_it_is_reset() -> None:
    model = tiny_model("llama-gqa")
    expected = call(model, BudgetCache(model, H2O(8)))
    cache = BudgetCache(model, H2O(8))
    model.model.layers[0].mlp = Interrupted(model.model.layers[0].mlp, KeyboardInterrupt())
    call(model, cache)
    with pytest.raises(KeyboardInterrupt):
        call(model, cache)
    with pytest.raises(ValueError, match="ended half-way"):
        call(model, cache)
    cache.reset()
    assert torch.equal(call(model, cache), expected)


def test_several_caches_take_turns() -> None:
    model = tiny_model("llama-gqa")
    parts = [tokens(seed=seed) for seed in (1, 2, 3)]
    caches = [BudgetCache(model, H2O(8)) for _ in parts]
    halves = [call(model, cache, part[:, :6]) for cache, part in zip(caches, parts, strict=True)]
    plain = call(model, None)
    for cache, part, half in zip(caches, parts, halves, strict=True):
        rest = call(model, cache, part[:, 6:])
        mine = BudgetCache(model, H2O(8))
        assert torch.equal(half, call(model, mine, part[:, :6]))
        assert torch.equal(rest, call(model, mine, part[:, 6:]))
    del caches, cache, mine
    assert torch.equal(call(model, None), plain)


def reloaded(model: nn.Module) -> nn.Module:
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    return torch.load(stored, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, reloaded], ids=["copied", "pickled"])
def test_a_duplicate_of_a_model_is_a_model_of_its_own(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = tiny_model("llama-gqa")
    plain = call(model, None)
    expected = call(model, BudgetCache(model, H2O(8)))
    other = duplicate(model)
    assert torch.equal(call(other, None), plain)
    assert torch.equal(call(other, BudgetCache(other, H2O(8))), expected)
    assert torch.equal(call(model, BudgetCache(model, H2O(8))), expected)
    assert implementation(other) == implementation(model) == "sdpa"


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_hooks_are_added_once() -> None:
    model = tiny_model("llama-gqa")
    BudgetCache(model, H2O(8))
    count = hooks(model)
    wrapped = wrapped_by_lora(model)
    for policy in (H2O(8), Local(8)):
        BudgetCache(model, policy)
        BudgetCache(wrapped, policy)
    assert hooks(model) == count
    assert AttentionSwitch.is_on(model) and not AttentionSwitch.is_on(tiny_model("llama-gqa"))


def wrapped_by_lora(model: PreTrainedModel) -> nn.Module:
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).eval()


def quantized(model: PreTrainedModel) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


WRAPPERS = {"lora": wrapped_by_lora, "quantized": quantized, "data-parallel": nn.DataParallel}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_and_quantized_models_answer(wrap: Callable[[PreTrainedModel], nn.Module]) -> None:
    model = wrap(tiny_model("llama-gqa"))
    expected = call(model, DynamicCache())
    assert_close(call(model, BudgetCache(model, Full())), expected, atol=2e-5)
    assert implementation(model) == "sdpa"


def test_parts_of_a_model_answer() -> None:
    # Some architectures, OPT for one, call their decoder past the model around it.
    model = tiny_model("llama-gqa")
    cache = BudgetCache(model, Full())
    with torch.no_grad():
        expected = model.model(tokens()).last_hidden_state
        assert_close(model.model(tokens(), past_key_values=cache)[0], expected, atol=2e-5)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 32}
    config = OPTConfig(vocab_size=VOCABULARY, word_embed_proj_dim=32, **sizes)
    opt = AutoModelForCausalLM.from_config(config).eval()
    expected = call(opt, DynamicCache())
    assert_close(call(opt, BudgetCache(opt, Full())), expected, atol=2e-5)
    assert implementation(opt) == "sdpa"


@torch.no_grad()
def test_a_cache_given_by_position_is_found() -> None:
    model = tiny_model("llama-gqa")
    expected = call(model, BudgetCache(model, H2O(8)))
    assert torch.equal(model(tokens(), None, None, BudgetCache(model, H2O(8))).logits, expected)
    assert implementation(model) == "sdpa"


def test_a_model_with_a_pattern_keeps_it() -> None:
    model = sinklora.use_pattern(tiny_model("llama-gqa"), sinklora.SF)
    with torch.no_grad():
        expected = model.train()(tokens()).logits
        call(model.eval(), BudgetCache(model, H2O(8)))
        assert sinklora.current_pattern(model) == sinklora.SF
        assert torch.equal(model.train()(tokens()).logits, expected)


def test_the_model_compiles_without_a_cache() -> None:
    model = tiny_model("llama-gqa", num_hidden_layers=1)
    BudgetCache(model, H2O(8))
    expected = call(model, None)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(tokens(), use_cache=False).logits, expected, atol=1e-5)
    assert_close(call(model, StaticCache(config=model.config, max_cache_len=PROMPT)), expected, atol=1e-5)


# --- caches that were not made with the model ---------------------------------------------------------------


def test_a_cache_made_from_a_config_works_with_a_model_prepared_for_it() -> None:
    model = tiny_model("llama-gqa")
    expected = call(model, BudgetCache(model, H2O(8)))
    other = tiny_model("llama-gqa")
    assert enable_budget_caches(other) is other
    assert torch.equal(call(other, BudgetCache(other.config, H2O(8))), expected)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_not_prepared_for_the_cache_is_found(layers: int) -> None:
    model = tiny_model("llama-gqa", num_hidden_layers=layers)
    cache = BudgetCache(model.config, H2O(8))
    with pytest.raises(ValueError, match=r"enable_budget_caches\(model\)"):
        call(model, cache)
    assert cache.get_seq_length() == 0
    expected = call(model, BudgetCache(model, H2O(8)))
    assert torch.equal(call(model, cache), expected)


# --- refusals that leave everything as it was ---------------------------------------------------------------


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    before, config = call(model, None), model.config.to_json_string()
    attention, count = implementation(model), hooks(model)
    yield
    assert implementation(model) == attention and hooks(model) == count
    assert model.config.to_json_string() == config
    assert torch.equal(call(model, None), before)


def test_asking_for_the_interface_changes_nothing() -> None:
    model = tiny_model("llama-gqa")
    model.set_attn_implementation("eager")
    with unchanged(model):
        assert honours_interface(model, CACHE_NAME)


def test_a_refused_policy_changes_nothing() -> None:
    model = tiny_model("llama-gqa")
    with unchanged(model), pytest.raises(TypeError, match="policy="):
        BudgetCache(model, 0.2)  # type: ignore[arg-type]
