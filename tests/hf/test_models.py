"""Patterns on transformers models: the truth is the same model under `sdpa` with a dense 4-D mask."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    OPTConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers import assert_close, every_pair
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import FULL, S2, SF, SF_SHIFTED, SHORT, AttentionPattern
from sinklora.cache.full import Full
from sinklora.hf.attention import ATTENTION_NAME
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.document_ids import LostDocumentsError
from sinklora.hf.models import current_pattern, evaluates_with_pattern, remove_pattern, use_pattern
from sinklora.hf.rope import extend_context
from tiny_models import ARCHITECTURES, HEADS, TOKENS, VOCABULARY, Batch, make_batch, tiny_config, tiny_model

LAYOUTS = ["plain", "left-padded", "right-padded", "packed"]
TRAINING_PATTERNS = {
    "short": SHORT,
    "s2": S2,
    "sf": SF,
    "sf_shifted": SF_SHIFTED,
    "sf-in-tokens": AttentionPattern(group_size=5, sink_tokens=2),
}


def dense_mask(pattern: Pattern, batch: Batch) -> Tensor:
    """The additive float mask [B, H, N, N] that says the same as the pattern; padding is its own document."""
    visible = pattern.visible(HEADS, batch.document_ids.shape[1], batch.document_ids)
    return torch.where(visible, 0.0, torch.finfo(torch.float32).min)


def dense_model(model: PreTrainedModel) -> PreTrainedModel:
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("sdpa")
    return reference


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    """Sum of squares over real tokens, so that every logit of a real token has its own gradient."""
    return (logits[batch.real].float() ** 2).mean()


def gradients(model: nn.Module, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(logits, batch).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def pattern_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    return model(**batch.inputs, use_cache=False).logits


def dense_logits(model: PreTrainedModel, pattern: Pattern, batch: Batch) -> Tensor:
    mask = dense_mask(pattern, batch)
    ids, positions = batch.inputs["input_ids"], batch.position_ids
    return model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


@pytest.mark.parametrize(
    ("architecture", "pattern_name", "layout"), every_pair(ARCHITECTURES, TRAINING_PATTERNS, LAYOUTS)
)
def test_training_equals_dense_mask(architecture: str, pattern_name: str, layout: str) -> None:
    pattern, batch = TRAINING_PATTERNS[pattern_name], make_batch(layout)
    model = tiny_model(architecture)
    reference = dense_model(model).train()
    use_pattern(model, pattern).train()

    expected = dense_logits(reference, pattern, batch)
    actual = pattern_logits(model, batch)

    assert_close(actual[batch.real], expected[batch.real], atol=2e-5)
    assert torch.isfinite(actual).all()
    full = pattern_logits(reference, batch)
    assert (full - expected)[batch.real].abs().max() > 1e-2, (
        "the test cannot tell the pattern from full attention"
    )
    wanted = gradients(reference, expected, batch)
    for name, gradient in gradients(model, actual, batch).items():
        assert_close(gradient, wanted[name], atol=2e-5 * max(1.0, wanted[name].abs().max().item()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_evaluation_is_the_models_own_attention(architecture: str, layout: str) -> None:
    batch = make_batch(layout)
    model = tiny_model(architecture)
    expected = pattern_logits(model, batch)
    use_pattern(model, SF)
    assert torch.equal(pattern_logits(model, batch), expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_is_the_models_own(architecture: str, cache: str) -> None:
    batch = make_batch("left-padded")
    model = tiny_model(architecture)
    options = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    options |= {"output_scores": True, "return_dict_in_generate": True, "disable_compile": True}
    expected = model.generate(**batch.inputs, **options)
    use_pattern(model, SF)
    actual = model.generate(**batch.inputs, **options)
    assert torch.equal(actual.sequences, expected.sequences)
    assert_close(torch.stack(actual.scores), torch.stack(expected.scores), atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("layout", ["right-padded", "packed"])
@pytest.mark.parametrize("architecture", ["llama-gqa", "neox-mha"])
def test_checkpointing_changes_nothing(architecture: str, layout: str, reentrant: bool) -> None:
    batch = make_batch(layout)
    model = use_pattern(tiny_model(architecture), SF_SHIFTED).train()
    logits = pattern_logits(model, batch)
    expected = gradients(model, logits, batch)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    enable_checkpointing(model, reentrant)
    actual_logits = pattern_logits(model, batch)
    assert_close(actual_logits, logits, atol=1e-6)
    for name, gradient in gradients(model, actual_logits, batch).items():
        assert_close(gradient, expected[name], atol=1e-6)


def enable_checkpointing(model: PreTrainedModel, reentrant: bool = False) -> None:
    # Renamed in transformers 5.2x; the older name still works there but warns.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen3-gqa", "neox-mha"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_autocast_uses_one_dtype(architecture: str, training: bool) -> None:
    batch = make_batch("packed")
    model = use_pattern(tiny_model(architecture), SF).train(training)
    expected = pattern_logits(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = pattern_logits(model, batch)
    scale = expected.abs().max().item()
    assert_close(actual.float() / scale, expected / scale, atol=5e-2)


def test_half_precision_model_trains() -> None:
    batch = make_batch("left-padded")
    model = use_pattern(tiny_model("llama-gqa"), SF).train()
    expected = pattern_logits(model, batch)
    logits = pattern_logits(model.bfloat16(), batch)
    assert logits.dtype == torch.bfloat16
    scale = expected.abs().max().item()
    assert_close(logits[batch.real].float() / scale, expected[batch.real] / scale, atol=5e-2)


def test_option_evaluates_with_the_pattern() -> None:
    batch = make_batch("packed")
    model = tiny_model("llama-gqa")
    expected = dense_logits(dense_model(model), SF, batch)
    use_pattern(model, SF, evaluate_with_pattern=True)
    assert not model.training and evaluates_with_pattern(model)
    assert_close(pattern_logits(model, batch), expected, atol=2e-5)
    with pytest.raises(ValueError, match="evaluate_with_pattern off"):
        model.generate(**make_batch("plain").inputs, max_new_tokens=2)
    use_pattern(model, SF)
    assert not evaluates_with_pattern(model)


def test_training_with_the_default_cache_equals_training_without() -> None:
    batch = make_batch("right-padded")
    model = use_pattern(tiny_model("llama-gqa"), SF).train()
    assert model.config.use_cache
    assert torch.equal(model(**batch.inputs).logits, pattern_logits(model, batch))


MASK_OF_ONES = torch.ones(2, TOKENS, dtype=torch.long)
LOST: dict[str, Callable[[], dict[str, object]]] = {
    "mask": lambda: {"attention_mask": MASK_OF_ONES, "use_cache": False},
    "default cache": dict,
    "dynamic cache": lambda: {"past_key_values": DynamicCache()},
}


@pytest.mark.parametrize(
    ("architecture", "inputs", "training"), every_pair(ARCHITECTURES, LOST, [True, False]), ids=str
)
def test_lost_document_starts_are_the_same_error_in_evaluation(
    architecture: str, inputs: str, training: bool
) -> None:
    batch = make_batch("packed")
    model = use_pattern(tiny_model(architecture), SF).train(training)
    with pytest.raises(LostDocumentsError, match="pass attention_mask=None and use_cache=False"):
        model(**batch.inputs | LOST[inputs]())


@pytest.mark.parametrize("attention_mask", [None, MASK_OF_ONES], ids=["no mask", "mask of ones"])
@pytest.mark.parametrize("pattern", [None, SF], ids=["plain", "pattern"])
def test_a_budget_cache_refuses_packed_documents(
    pattern: Pattern | None, attention_mask: Tensor | None
) -> None:
    inputs = make_batch("packed").inputs | {"attention_mask": attention_mask}
    model = tiny_model("llama-gqa")
    if pattern is not None:
        use_pattern(model, pattern)
    cache = BudgetCache(model, Full())
    with torch.no_grad(), pytest.raises(LostDocumentsError, match="one document a row: unpack the rows"):
        model(**inputs, past_key_values=cache)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("chunk", [None, 4], ids=["whole prompt", "chunks"])
@pytest.mark.parametrize("cache", ["dynamic", "static", "budget"])
def test_padded_generation_is_not_taken_for_packed_documents(cache: str, chunk: int | None) -> None:
    # The positions of padding are all 1, and restart where the row begins.
    batch, model = make_batch("left-padded"), use_pattern(tiny_model("llama-gqa"), SF)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "disable_compile": True}
    expected = tiny_model("llama-gqa").generate(**batch.inputs, **options)
    caches = {"dynamic": DynamicCache(), "budget": BudgetCache(model, Full())}
    options |= {"past_key_values": caches[cache]} if cache in caches else {"cache_implementation": cache}
    actual = model.generate(**batch.inputs, **options, prefill_chunk_size=chunk)
    assert actual.tolist() == expected.tolist()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_positions_that_jump_are_one_document_with_a_mask_of_ones(training: bool) -> None:
    positions = torch.cat([torch.arange(10), torch.arange(40, 30 + TOKENS)]).expand(2, -1)
    inputs = make_batch("plain").inputs | {"position_ids": positions, "use_cache": False}
    causal = torch.ones(1, 1, TOKENS, TOKENS, dtype=torch.bool).tril()
    expected = tiny_model("llama-gqa")(**inputs, attention_mask=causal).logits
    model = use_pattern(tiny_model("llama-gqa"), FULL).train(training)
    assert_close(model(**inputs, attention_mask=MASK_OF_ONES).logits, expected, atol=2e-5)


def test_a_model_with_a_pattern_compiles_in_evaluation() -> None:
    batch = make_batch("plain")
    model = use_pattern(tiny_model("llama-gqa", num_hidden_layers=1), SF)
    expected = pattern_logits(model, batch)
    torch.compiler.reset()
    assert_close(pattern_logits(torch.compile(model, backend="eager"), batch), expected, atol=1e-5)


def test_positions_of_padding_do_not_count_as_documents() -> None:
    # What generation-style code passes: positions counted from the first real token, padding set to 1.
    batch = make_batch("left-padded")
    model = use_pattern(tiny_model("llama-gqa"), SF).train()
    mask = batch.inputs["attention_mask"]
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    actual = model(**batch.inputs, position_ids=positions, use_cache=False).logits[1:, 7:]
    expected = model(input_ids=batch.inputs["input_ids"][1:, 7:], use_cache=False).logits
    assert_close(actual, expected, atol=2e-5)


def test_gap_in_the_padding() -> None:
    batch = make_batch("plain")
    mask = torch.ones_like(batch.inputs["input_ids"])
    mask[0, 5:8] = 0
    model = tiny_model("llama-gqa")
    expected = model(**batch.inputs, attention_mask=mask).logits
    use_pattern(model, SF)
    assert torch.equal(model(**batch.inputs, attention_mask=mask).logits, expected)
    with pytest.raises(ValueError, match="attention_mask has gaps"):
        model.train()(**batch.inputs, attention_mask=mask)


def test_four_dimensional_mask() -> None:
    batch = make_batch("packed")
    model = tiny_model("llama-gqa")
    expected = dense_logits(model, S2, batch)
    use_pattern(model, SF)
    assert torch.equal(dense_logits(model, S2, batch), expected)
    with pytest.raises(ValueError, match="4-D attention mask"):
        dense_logits(model.train(), S2, batch)


def test_continuing_a_cache_in_training_mode_is_an_error() -> None:
    batch = make_batch("plain")
    model = use_pattern(tiny_model("llama-gqa"), SF).train()
    with pytest.raises(ValueError, match=r"call model.eval\(\) before generating"):
        model.generate(**batch.inputs, max_new_tokens=3)


# ----------------------------------------------------------------------------- what use_pattern refuses


def refused(config: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    "config",
    [
        GPTJConfig(n_embd=32, n_layer=2, n_head=4, n_inner=32, rotary_dim=8, vocab_size=VOCABULARY),
        FalconConfig(**SMALL),
    ],
    ids=lambda config: config.model_type,
)
def test_architecture_without_the_interface_is_an_error(config: object) -> None:
    model = refused(config)
    implementation = model.config._attn_implementation
    with pytest.raises(ValueError, match="AttentionInterface"):
        use_pattern(model, SF)
    assert current_pattern(model) is None
    assert model.config._attn_implementation == implementation
    assert not hasattr(model.config, "sinklora") and not hasattr(model.config, "attn_implementation")


class HalfHonest(nn.Module):
    """An attention layer that ignores the interface, as a hand-written layer in a modern model would."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.value = layer.v_proj

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        return hidden_states, None


def test_one_layer_that_ignores_the_interface_is_an_error() -> None:
    model = tiny_model("llama-gqa")
    model.model.layers[1].self_attn = HalfHonest(model.model.layers[1].self_attn)
    with pytest.raises(ValueError, match="the pattern in 1 of 2 attention layers"):
        use_pattern(model, SF)
    assert current_pattern(model) is None


class Forgetful(nn.Module):
    """Wraps an attention layer and loses the mask on the way."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        return self.layer(hidden_states, **(kwargs | {"attention_mask": None}))


def test_lost_padding_is_an_error() -> None:
    model = tiny_model("llama-gqa")
    model.model.layers[1].self_attn = Forgetful(model.model.layers[1].self_attn)
    with pytest.raises(ValueError, match="padding"):
        use_pattern(model, SF)


def test_soft_capped_scores_are_an_error() -> None:
    config = Gemma2Config(**SMALL, num_key_value_heads=2, intermediate_size=32, head_dim=8)
    config.sliding_window = config.max_position_embeddings
    with pytest.raises(ValueError, match="softcap"):
        use_pattern(refused(config), SF)


def test_attention_dropout_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"attention_dropout=0.0"):
        use_pattern(tiny_model("llama-gqa", attention_dropout=0.1), SF)


def test_hidden_dropout_is_not_an_error() -> None:
    assert current_pattern(use_pattern(tiny_model("neox-mha", hidden_dropout=0.1), SF)) == SF


@pytest.mark.parametrize("architecture", ["mistral-gqa", "qwen2-gqa"])
def test_sliding_window_below_the_context_is_an_error(architecture: str) -> None:
    options = {"sliding_window": 16}
    if architecture == "qwen2-gqa":
        options |= {"use_sliding_window": True, "max_window_layers": 1}
    with pytest.raises(ValueError, match="sliding_window=16 is shorter than max_position_embeddings=64"):
        use_pattern(tiny_model(architecture, **options), SF)


@pytest.mark.parametrize("architecture", ["mistral-gqa", "qwen2-gqa"])
def test_sliding_window_below_the_sequence_is_an_error_in_training(architecture: str) -> None:
    options = {"sliding_window": 16, "max_position_embeddings": 16}
    if architecture == "qwen2-gqa":
        options |= {"use_sliding_window": True, "max_window_layers": 1}
    model = tiny_model(architecture, **options)
    batch, short = make_batch("right-padded"), make_batch("plain", tokens=16)
    expected = pattern_logits(model, batch)
    use_pattern(model, SF)
    assert torch.equal(pattern_logits(model, batch), expected)
    with pytest.raises(
        ValueError, match="sliding_window=16, makes one where it is shorter than the 24 tokens"
    ):
        pattern_logits(model.train(), batch)
    assert_close(pattern_logits(model, short), dense_logits(dense_model(model).train(), SF, short), atol=2e-5)


def test_encoder_decoder_is_an_error() -> None:
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="decoder-only text model, got model_type='t5'"):
        use_pattern(T5ForConditionalGeneration(config), SF)


def test_not_a_transformers_model() -> None:
    with pytest.raises(TypeError, match="PreTrainedModel, got Linear"):
        use_pattern(nn.Linear(2, 2), SF)
    with pytest.raises(TypeError, match="PreTrainedModel, got str"):
        use_pattern("llama", SF)


def test_learned_positions_work_too() -> None:
    gpt2 = GPT2Config(**SMALL, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
    opt = OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=32, attention_dropout=0.0, dropout=0.0)
    for config in (gpt2, opt):
        model = refused(config)
        batch = make_batch("right-padded")
        expected = dense_logits(dense_model(model).train(), SF, batch)
        actual = pattern_logits(use_pattern(model, SF).train(), batch)
        assert_close(actual[batch.real], expected[batch.real], atol=2e-5)
    with pytest.raises(ValueError, match="OPT, cannot be given packed documents"):
        pattern_logits(model, make_batch("packed"))


# ----------------------------------------------------------------------------- what use_pattern leaves alone


def test_probe_leaves_no_trace() -> None:
    model = tiny_model("neox-mha", hidden_dropout=0.5)
    model.gpt_neox.layers[0].train()
    modes = {name: module.training for name, module in model.named_modules()}
    weights = copy.deepcopy(model.state_dict())
    state = torch.random.get_rng_state()
    use_pattern(model, SF)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_two_models_keep_their_own_patterns() -> None:
    batch = make_batch("plain")
    first, second = tiny_model("llama-gqa"), tiny_model("llama-gqa")
    use_pattern(first, SHORT)
    use_pattern(second, SF)
    assert current_pattern(first) == SHORT and current_pattern(second) == SF
    difference = pattern_logits(first.train(), batch) - pattern_logits(second.train(), batch)
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_remove_pattern_restores(implementation: str) -> None:
    model = tiny_model("llama-gqa")
    model.set_attn_implementation(implementation)
    before = model.config.to_json_string()
    assert use_pattern(model, "s2") is model
    use_pattern(model, "sf")
    assert current_pattern(model) == SF
    assert remove_pattern(model) is model
    assert model.config._attn_implementation == implementation
    assert current_pattern(model) is None
    assert model.config.to_json_string() == before


def test_failed_change_keeps_the_old_pattern() -> None:
    model = use_pattern(tiny_model("llama-gqa"), S2)
    model.model.layers[1].self_attn = HalfHonest(model.model.layers[1].self_attn)
    with pytest.raises(ValueError, match="1 of 2"):
        use_pattern(model, SF)
    assert current_pattern(model) == S2


# ----------------------------------------------------------------------------- saving and loading


def test_reloaded_model_trains_with_its_pattern(tmp_path) -> None:
    batch = make_batch("packed")
    model = use_pattern(tiny_model("qwen3-gqa"), SF_SHIFTED)
    expected = pattern_logits(model.train(), batch)
    model.save_pretrained(tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert current_pattern(loaded) == SF_SHIFTED
    assert torch.equal(pattern_logits(loaded.train(), batch), expected)

    loaded.save_pretrained(tmp_path / "second")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    assert current_pattern(again) == SF_SHIFTED
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "second", attn_implementation="sdpa")
    assert current_pattern(plain) is None


LOAD_BEFORE_AND_AFTER_THE_IMPORT = """
import sys
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    print(error)
import sinklora.hf
print(AutoModelForCausalLM.from_pretrained(sys.argv[1]).config._attn_implementation)
"""


def test_a_saved_model_asks_for_the_import(tmp_path: Path) -> None:
    use_pattern(tiny_model("llama-gqa"), SF).save_pretrained(tmp_path)
    command = [sys.executable, "-c", LOAD_BEFORE_AND_AFTER_THE_IMPORT, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # The name is all that transformers lets us say to those who forgot the import.
    assert printed.startswith('Specified `attn_implementation="sinklora"` is not supported')
    assert printed.endswith("\nsinklora\n")


# What the first release wrote into a config.
SAVED = {
    "attn_implementation": "sinklora",
    "sinklora": {
        "pattern": {
            "kind": "windows",
            "group_size": 0.25,
            "sink_tokens": 4,
            "shifted": 0.0,
            "wrapped": False,
        },
        "evaluate_with_pattern": False,
        "replaced": "sdpa",
    },
}


def test_a_model_saved_by_the_first_release_loads(tmp_path: Path) -> None:
    batch, model = make_batch("packed"), tiny_model("llama-gqa")
    model.save_pretrained(tmp_path)
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | SAVED))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert current_pattern(loaded) == SF
    use_pattern(model, SF)
    former = {"shifted_fraction": "shifted"}
    now = {former.get(name, name): value for name, value in model.config.sinklora["pattern"].items()}
    assert model.config.sinklora | {"pattern": now} == SAVED["sinklora"]
    assert torch.equal(pattern_logits(loaded.train(), batch), pattern_logits(model.train(), batch))


def test_config_holds_json_only(tmp_path) -> None:
    model = use_pattern(tiny_model("llama-gqa"), SF, evaluate_with_pattern=True)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["sinklora"] == model.config.sinklora
    assert stored["sinklora"]["pattern"] == SF.to_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert evaluates_with_pattern(loaded) and current_pattern(loaded) == SF


def test_models_saved_with_former_names_are_loaded(tmp_path) -> None:
    use_pattern(tiny_model("llama-gqa"), SF_SHIFTED).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    pattern = config["sinklora"]["pattern"]
    pattern["shifted"] = pattern.pop("shifted_fraction")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert current_pattern(AutoModelForCausalLM.from_pretrained(tmp_path)) == SF_SHIFTED


def test_name_without_a_pattern_is_an_error() -> None:
    model = tiny_model("llama-gqa")
    model.set_attn_implementation(ATTENTION_NAME)
    with pytest.raises(ValueError, match=r"call sinklora.use_pattern"):
        pattern_logits(model, make_batch("plain"))
    with pytest.raises(ValueError, match=r"call sinklora.use_pattern"):
        current_pattern(model)
    assert current_pattern(use_pattern(model, FULL)) == FULL


# ----------------------------------------------------------------------------- longer contexts


def loaded_with_rope(architecture: str, length: int, **parameters: object) -> PreTrainedModel:
    """The same weights in a model whose config had the scaled positions from the start."""
    plain = tiny_model(architecture)
    rope = {**plain.config.rope_parameters, **parameters}
    config = tiny_config(architecture, rope_parameters=rope, max_position_embeddings=length)
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(plain.state_dict())
    return model.eval()


@pytest.mark.parametrize("method", ["linear", "dynamic", "yarn"])
@pytest.mark.parametrize("architecture", ["llama-gqa", "qwen3-gqa", "gemma-mqa", "neox-mha"])
def test_extended_model_equals_one_built_that_way(architecture: str, method: str, tmp_path) -> None:
    batch = make_batch("plain", tokens=160)
    model = tiny_model(architecture)
    theta = model.config.rope_parameters["rope_theta"]
    original = pattern_logits(model, batch)
    assert extend_context(model, 256, method=method) is model

    extra = {"original_max_position_embeddings": 64} if method == "yarn" else {}
    length = 64 if method == "dynamic" else 256
    reference = loaded_with_rope(architecture, length, rope_type=method, factor=4.0, **extra)
    actual = pattern_logits(model, batch)
    assert torch.equal(actual, pattern_logits(reference, batch))
    assert (actual - original).abs().max() > 1e-2
    assert model.config.rope_parameters["rope_theta"] == theta
    assert model.config.max_position_embeddings == length

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.rope_parameters == model.config.rope_parameters
    assert torch.equal(pattern_logits(loaded, batch), actual)


@pytest.mark.parametrize("method", ["linear", "dynamic", "yarn"])
@pytest.mark.parametrize("reload", [False, True], ids=["same-object", "reloaded"])
def test_extending_twice_equals_extending_once(method: str, reload: bool, tmp_path) -> None:
    batch = make_batch("plain", tokens=160)
    model = extend_context(tiny_model("llama-gqa"), 100, method=method)
    if reload:
        model.save_pretrained(tmp_path)
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
    extend_context(model, 256, method=method)
    once = extend_context(tiny_model("llama-gqa"), 256, method=method)
    assert model.config.rope_parameters == once.config.rope_parameters
    assert torch.equal(pattern_logits(model, batch), pattern_logits(once, batch))


def test_linear_interpolation_is_positions_divided_by_the_factor() -> None:
    model = tiny_model("llama-gqa")
    tokens = make_batch("plain").inputs["input_ids"]
    expected = model(tokens, position_ids=torch.arange(TOKENS)[None]).logits
    extend_context(model, 192)
    actual = model(
        tokens, position_ids=3 * torch.arange(TOKENS)[None], attention_mask=torch.ones_like(tokens)
    )
    assert_close(actual.logits, expected, atol=1e-5)


def test_partial_rotary_factor_is_kept() -> None:
    model = tiny_model("neox-mha")
    factor = model.config.rope_parameters["partial_rotary_factor"]
    assert extend_context(model, 128).config.rope_parameters["partial_rotary_factor"] == factor


def test_frequencies_stay_float32_in_a_half_precision_model() -> None:
    model = extend_context(tiny_model("llama-gqa").bfloat16(), 128)
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_order_of_pattern_and_extension_does_not_matter() -> None:
    batch = make_batch("packed")
    first = use_pattern(extend_context(tiny_model("llama-gqa"), 128), SF).train()
    second = extend_context(use_pattern(tiny_model("llama-gqa"), SF), 128).train()
    assert torch.equal(pattern_logits(first, batch), pattern_logits(second, batch))


@pytest.mark.parametrize(
    ("length", "method", "message"),
    [
        (64, "linear", "length must exceed the present context of 64 tokens, got 64"),
        (0, "yarn", "length must exceed"),
        (128, "ntk", "method must be one of linear, dynamic, yarn, llama3, longrope, got 'ntk'"),
    ],
)
def test_wrong_extension(length: int, method: str, message: str) -> None:
    model = tiny_model("llama-gqa")
    before = model.config.to_json_string()
    with pytest.raises(ValueError, match=message):
        extend_context(model, length, method=method)
    assert model.config.to_json_string() == before


@pytest.mark.parametrize("length", [128.0, True, "128", None])
def test_length_of_the_wrong_type(length: object) -> None:
    with pytest.raises(TypeError, match="length must be a number of tokens"):
        extend_context(tiny_model("llama-gqa"), length)


def test_extension_without_rope_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rotary position embeddings"):
        extend_context(refused(GPT2Config(**SMALL)), 2048)


def test_foreign_scaling_is_an_error() -> None:
    model = loaded_with_rope("llama-gqa", 256, rope_type="linear", factor=4.0)
    with pytest.raises(ValueError, match=r"set model.config.original_max_position_embeddings"):
        extend_context(model, 512)
    model.config.original_max_position_embeddings = 64
    assert extend_context(model, 512).config.rope_parameters["factor"] == 8.0
    with pytest.raises(ValueError, match="already scaled with rope_type='linear'"):
        extend_context(model, 1024, method="yarn")


def test_extension_shrinks_nothing_it_has() -> None:
    model = extend_context(tiny_model("llama-gqa"), 256, method="dynamic")
    with pytest.raises(ValueError, match="present context of 256 tokens, got 128"):
        extend_context(model, 128, method="dynamic")
