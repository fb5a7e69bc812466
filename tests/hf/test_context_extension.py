"""`extend_context`: the model that had the scaled positions from the start."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from helpers import assert_close
from pattern_models import SMALL, pattern_logits, small_model
from sinklora.attention.patterns import SF
from sinklora.hf.models import use_pattern
from sinklora.hf.rope import extend_context
from tiny_models import TOKENS, make_batch, tiny_config, tiny_model


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
        (128, "ntk", "method='ntk': expected one of linear, dynamic, yarn, llama3, longrope"),
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
    with pytest.raises(TypeError, match=r"length=.*: expected a whole number"):
        extend_context(tiny_model("llama-gqa"), length)


def test_extension_without_rope_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rotary position embeddings"):
        extend_context(small_model(GPT2Config(**SMALL)), 2048)


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
