"""Frequencies of extended models: worked out with plain numbers, for every method and config form."""

import copy
import math
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedModel,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from adapted_models import logits_of
from helpers import assert_close
from sinklora.hf.rope import extend_context, restore_rope, rope_state
from sinklora.lora.adapter import lora_plus
from sinklora.lora.checkpoint import load_adapter, save_adapter
from tiny_models import VOCABULARY, make_batch, tiny_model

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD = 16
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SHORT, LONG = [1.0 + 0.05 * i for i in range(HEAD // 2)], [1.0 + i for i in range(HEAD // 2)]
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "rope_theta": 10000.0}


def llama(length: int = 64, **changes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(**(SIZES | {"max_position_embeddings": length} | changes))
    ).eval()


def phi3(length: int = 256, **changes: object) -> PreTrainedModel:
    options = {"max_position_embeddings": length, "original_max_position_embeddings": 64} | changes
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(Phi3Config(**SIZES, **options)).eval()


def gemma3(length: int = 64, **full: object) -> PreTrainedModel:
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6} | full,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = Gemma3TextConfig(
        **SIZES,
        head_dim=HEAD,
        max_position_embeddings=length,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters=rope,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


# ----------------------------------------------------------------------------- frequencies by hand


def plain(theta: float, size: int = HEAD) -> list[float]:
    return [theta ** (-2 * i / size) for i in range(size // 2)]


def dynamic(theta: float, factor: float, tokens: int, original: int, size: int = HEAD) -> list[float]:
    """NTK: a base that leaves the last frequency divided by what the length asks for."""
    tokens = max(tokens, original)
    return plain(theta * (factor * tokens / original - (factor - 1)) ** (size / (size - 2)), size)


def yarn(theta: float, factor: float, original: int, size: int = HEAD) -> list[float]:
    """arXiv 2309.00071: below 1 rotation in the original length divided, above 32 kept, a ramp between."""

    def place(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(place(32)), 0), min(math.ceil(place(1)), size - 1)
    divided = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(size // 2)]
    return [f * ((1 - d) + d / factor) for f, d in zip(plain(theta, size), divided, strict=True)]


def llama3(theta: float, factor: float, original: int, low: float = 1.0, high: float = 4.0) -> list[float]:
    """Llama 3.1: waves longer than original/low divided, those shorter than original/high kept, a ramp."""
    frequencies = []
    for f in plain(theta):
        waves = original * f / (2 * math.pi)  # that fit into the original length
        kept = min(max((waves - low) / (high - low), 0.0), 1.0)
        frequencies.append(kept * f + (1 - kept) * f / factor)
    return frequencies


def frequencies_of(model: PreTrainedModel, tokens: int = 8, name: str = "inv_freq") -> torch.Tensor:
    """After a forward pass over `tokens`, which dynamic scalings look at."""
    with torch.no_grad():
        model(torch.ones(1, tokens, dtype=torch.long), use_cache=False)
    return getattr(model.model.rotary_emb, name)


@pytest.mark.parametrize("length", [128, 320])
def test_frequencies_of_interpolations(length: int) -> None:
    factor = length / 64
    linear = frequencies_of(extend_context(llama(), length))
    assert_close(linear, [f / factor for f in plain(1e4)], atol=0, rtol=1e-6)
    model = extend_context(llama(), length, method="yarn")
    assert_close(frequencies_of(model), yarn(1e4, factor, 64), atol=0, rtol=1e-5)
    assert model.model.rotary_emb.attention_scaling == pytest.approx(0.1 * math.log(factor) + 1)
    model = extend_context(llama(), length, method="dynamic")
    for tokens in (8, 64, 100, length):
        assert_close(frequencies_of(model, tokens), dynamic(1e4, factor, tokens, 64), atol=0, rtol=1e-5)


@pytest.mark.parametrize("method", ["linear", "dynamic", "yarn", "llama3", "longrope"])
def test_rotary_module_equals_transformers_own_functions(method: str) -> None:
    model = {"llama3": lambda: llama(256, rope_parameters=dict(LLAMA3)), "longrope": phi3_scaled}.get(
        method, llama
    )()
    extend_context(model, 512, method=method)
    frequencies, scaling = ROPE_INIT_FUNCTIONS[method](model.config)
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
    assert model.model.rotary_emb.attention_scaling == scaling


def test_llama3_scaling_goes_on_with_its_own_frequencies() -> None:
    model = llama(512, rope_parameters=dict(LLAMA3))
    assert_close(frequencies_of(model), llama3(5e5, 8.0, 64), atol=0, rtol=1e-5)
    before = frequencies_of(model).clone()
    assert extend_context(model, 2048, method="llama3") is model
    assert_close(frequencies_of(model), llama3(5e5, 32.0, 64), atol=0, rtol=1e-5)
    ratio = before / frequencies_of(model)
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(4), "short waves are kept, long ones stretched"
    assert model.config.max_position_embeddings == 2048
    assert model.config.rope_parameters == LLAMA3 | {"factor": 32.0}


def phi3_scaled() -> PreTrainedModel:
    return phi3(rope_parameters=copy.deepcopy(LONGROPE))


@pytest.mark.parametrize("explicit", [{}, {"factor": 4.0}, {"attention_factor": 1.25}], ids=str)
def test_longrope_stretches_what_is_beyond_the_length_of_pretraining(explicit: dict[str, float]) -> None:
    model = phi3(rope_parameters=copy.deepcopy(LONGROPE) | explicit)
    extend_context(model, 1024, method="longrope")
    short = [f / s for f, s in zip(plain(1e4), SHORT, strict=True)]
    long = [f / (4 * s) for f, s in zip(plain(1e4), LONG, strict=True)]
    assert_close(frequencies_of(model, 64), short, atol=0, rtol=1e-5)
    assert_close(frequencies_of(model, 65), long, atol=0, rtol=1e-5)
    assert_close(frequencies_of(model, 8), short, atol=0, rtol=1e-5)
    expected = explicit.get("attention_factor", math.sqrt(1 + math.log(1024 / 64) / math.log(64)))
    assert model.model.rotary_emb.attention_scaling == pytest.approx(expected)
    assert model.config.original_max_position_embeddings == 64


@pytest.mark.parametrize("method", ["linear", "dynamic", "yarn"])
def test_layer_types_with_positions_of_their_own(method: str) -> None:
    model = extend_context(gemma3(), 256, method=method)
    tokens = 200
    wanted = {
        "linear": [f / 4 for f in plain(1e6)],
        "dynamic": dynamic(1e6, 4.0, tokens, 64),
        "yarn": yarn(1e6, 4.0, 64),
    }[method]
    full = frequencies_of(model, tokens, "full_attention_inv_freq")
    assert_close(full, wanted, atol=0, rtol=1e-5)
    local = frequencies_of(model, tokens, "sliding_attention_inv_freq")
    assert_close(local, plain(1e4), atol=0, rtol=1e-6)


def test_partial_rotary_embeddings() -> None:
    model = extend_context(tiny_model("neox-mha"), 256, method="yarn")  # 4 of 8 numbers of a head turn
    assert_close(model.gpt_neox.rotary_emb.inv_freq, yarn(1e4, 4.0, 64, size=4), atol=0, rtol=1e-5)
    model = extend_context(tiny_model("neox-mha"), 256)
    assert_close(model.gpt_neox.rotary_emb.inv_freq, [f / 4 for f in plain(1e4, 4)], atol=0, rtol=1e-6)


# ----------------------------------------------------------------------------- twice, saved, loaded

SCALED = {
    "linear": llama,
    "dynamic": llama,
    "yarn": llama,
    "llama3": lambda: llama(256, rope_parameters=dict(LLAMA3)),
    "longrope": phi3_scaled,
    "gemma3-linear": gemma3,
    "gemma3-yarn": gemma3,
}


def everything(model: PreTrainedModel) -> torch.Tensor:
    return model(**make_batch("plain", tokens=300).inputs, use_cache=False).logits


@pytest.mark.parametrize("name", SCALED)
def test_saved_and_extended_again_equals_once(name: str, tmp_path: Path) -> None:
    method = name.rpartition("-")[2]
    once = extend_context(SCALED[name](), 1024, method=method)
    original = everything(SCALED[name]())
    assert (everything(once) - original).abs().max() > 1e-3
    extend_context(SCALED[name](), 400, method=method).save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    extend_context(loaded, 1024, method=method)
    assert_close(everything(loaded), everything(once), atol=1e-5)
    assert loaded.config.max_position_embeddings == once.config.max_position_embeddings

    save_adapter(lora_plus(once), tmp_path / "adapter")
    again = load_adapter(SCALED[name](), tmp_path / "adapter")
    assert torch.equal(everything(again), everything(once.eval()))
    assert rope_state(again) == rope_state(once)


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_config_files_of_the_older_form(key: str, tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling` beside each other, as Llama 3.1 was published."""
    llama().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    values = config.to_dict()
    del values["rope_parameters"]
    scaling = {k: v for k, v in LLAMA3.items() if k not in ("rope_type", "rope_theta")} | {key: "llama3"}
    old = LlamaConfig.from_dict(
        values | {"rope_theta": 5e5, "rope_scaling": scaling, "max_position_embeddings": 512}
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path, config=old)
    extend_context(model, 1024, method="llama3")
    assert_close(frequencies_of(model), llama3(5e5, 16.0, 64), atol=0, rtol=1e-5)


def test_yarn_of_a_published_model_goes_on() -> None:
    """Factor and original length are in the parameters; the config may give the original as its length."""
    given = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    for length in (64, 256):
        model = extend_context(llama(length, rope_parameters=dict(given)), 512, method="yarn")
        assert_close(frequencies_of(model), yarn(1e4, 8.0, 64), atol=0, rtol=1e-5)
        with pytest.raises(ValueError, match="present context of 256 tokens, got 256"):
            extend_context(llama(length, rope_parameters=dict(given)), 256, method="yarn")


def test_half_precision_keeps_the_frequencies() -> None:
    model = extend_context(gemma3().bfloat16(), 128)
    assert model.model.rotary_emb.full_attention_inv_freq.dtype == torch.float32


# ----------------------------------------------------------------------------- refused, nothing touched


def refused(model: PreTrainedModel, method: str, message: str) -> None:
    before, logits = model.config.to_json_string(), logits_of(model)
    with pytest.raises(ValueError, match=message):
        extend_context(model, 4096, method=method)
    assert model.config.to_json_string() == before
    assert torch.equal(logits_of(model), logits)


@pytest.mark.parametrize("method", ["linear", "dynamic", "yarn", "longrope"])
def test_llama3_scaling_is_not_undone(method: str) -> None:
    message = rf"rope_type='llama3', which method='{method}' would undo: pass method='llama3'"
    refused(llama(256, rope_parameters=dict(LLAMA3)), method, message)


@pytest.mark.parametrize("method", ["linear", "yarn"])
def test_longrope_is_not_undone(method: str) -> None:
    refused(phi3_scaled(), method, rf"'longrope', which method='{method}' would undo: pass method='longrope'")


@pytest.mark.parametrize("method", ["llama3", "longrope"])
def test_a_scaling_that_is_not_there_cannot_go_on(method: str) -> None:
    refused(llama(), method, "its rope_type is 'default': choose one of linear, dynamic, yarn")


@pytest.mark.parametrize("method", ["linear", "yarn"])
def test_a_config_that_could_not_be_loaded_again(method: str) -> None:
    refused(phi3(64), method, f"method='{method}': Phi3Config does not read these positions back")


def test_layer_types_that_are_neither_full_nor_local() -> None:
    model = gemma3()
    parameters = model.config.rope_parameters
    model.config.rope_parameters = {"compressed": parameters["full_attention"]}
    with pytest.raises(ValueError, match="layers of type compressed, which are neither"):
        extend_context(model, 128)
    model.config.rope_parameters = {"sliding_attention": parameters["sliding_attention"]}
    with pytest.raises(ValueError, match="in local attention alone"):
        extend_context(model, 128)


def test_scalings_that_no_method_goes_on_with() -> None:
    refused(gemma3(rope_type="proportional"), "linear", "rope_type='proportional' cannot be extended")


def test_attention_that_was_scaled_when_it_was_built() -> None:
    sizes = SIZES | {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8}
    sizes |= {"qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 2}
    given = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    config = DeepseekV3Config(
        **sizes,
        max_position_embeddings=256,
        rope_parameters=given | {"mscale": 1.0, "mscale_all_dim": 1.0},
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    refused(model, "yarn", r"mscale_all_dim=1.0 scales the attention of 'deepseek_v3'")


def test_models_of_several_modalities() -> None:
    text = {**SIZES, "head_dim": HEAD}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    with pytest.raises(ValueError, match="'gemma3' holds a text model among others"):
        extend_context(model, 262144)


def test_rotary_modules_with_configs_of_their_own() -> None:
    """One for each base of Granite's: built from copies of the config, they would stay as they are."""
    config = AutoConfig.for_model("granite_swa", **SIZES, max_position_embeddings=64)
    model = AutoModelForCausalLM.from_config(config).eval()
    refused(model, "linear", r"GraniteSWARotaryEmbedding .* a config of its own .* load the model with it")


def test_a_config_that_does_not_say_how_long_its_context_is() -> None:
    sizes = SIZES | {"block_types": ["attention", "recurrent"], "lru_width": 64, "head_dim": HEAD}
    config = AutoConfig.for_model("recurrent_gemma", **sizes)
    model = AutoModelForCausalLM.from_config(config).eval()
    refused(model, "linear", "'recurrent_gemma' has no max_position_embeddings in its config")


def test_a_rotary_module_without_its_config() -> None:
    model = llama()
    del model.model.rotary_emb.config
    before = model.config.to_json_string()
    with pytest.raises(ValueError, match="LlamaRotaryEmbedding keeps no config"):
        restore_rope(model, rope_state(llama()) | {"max_position_embeddings": 128})
    assert model.config.to_json_string() == before
