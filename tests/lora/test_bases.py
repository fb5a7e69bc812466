"""What lora_plus adapts in architectures of all kinds, and which base models it refuses."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    MambaConfig,
    MixtralConfig,
    NemotronConfig,
    OlmoConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    RobertaPreLayerNormConfig,
    StableLmConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from adapted_models import logits_of, randomized, trainable
from helpers import assert_close
from sinklora.lora.adapter import check_gradients, lora_plus, merge_adapter
from sinklora.lora.checkpoint import load_adapter, save_adapter
from sinklora.lora.trained_modules import attention_projections, norm_layers
from tiny_models import VOCABULARY, tiny_config, tiny_model

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
HYBRID = {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
HYBRID |= {"linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}
HYBRID |= {"num_hidden_layers": 2, "mlp_only_layers": [0, 1], "head_dim": 8, "num_experts": 2}

# Config, projections by the last part of their names, norms by theirs (with repetitions in other layers).
ARCHITECTURES: dict[str, tuple[Callable[[], PreTrainedConfig], set[str], set[str]]] = {
    "phi3": (
        lambda: Phi3Config(**GROUPED),
        {"qkv_proj", "o_proj"},
        {"input_layernorm", "post_attention_layernorm", "norm"},
    ),
    "gpt2": (
        lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, tie_word_embeddings=False),
        {"c_attn", "c_proj"},
        {"ln_1", "ln_2", "ln_f"},
    ),
    "falcon": (
        lambda: FalconConfig(**SIZES, tie_word_embeddings=False),
        {"query_key_value", "dense"},
        {"input_layernorm", "ln_f"},
    ),
    "mixtral": (
        lambda: MixtralConfig(**GROUPED, num_local_experts=2),
        {"q_proj", "k_proj", "v_proj", "o_proj"},
        {"input_layernorm", "post_attention_layernorm", "norm"},
    ),
    "deepseek_v3": (
        lambda: DeepseekV3Config(**SIZES, num_key_value_heads=4, first_k_dense_replace=1, **LATENT),
        {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
        {"q_a_layernorm", "kv_a_layernorm", "input_layernorm", "post_attention_layernorm", "norm"},
    ),
    "nemotron": (  # LayerNorm1P
        lambda: NemotronConfig(**GROUPED, head_dim=8),
        {"q_proj", "k_proj", "v_proj", "o_proj"},
        {"input_layernorm", "post_attention_layernorm", "norm"},
    ),
    "stablelm": (  # one norm per head, in a list
        lambda: StableLmConfig(**SIZES, num_key_value_heads=2, qk_layernorm=True),
        {"q_proj", "k_proj", "v_proj", "o_proj"},
        {"0", "1", "2", "3", "input_layernorm", "post_attention_layernorm", "norm"},
    ),
    "qwen3_next": (  # RMSNormGated; linear attention is not adapted
        lambda: Qwen3NextConfig(**(GROUPED | HYBRID)),
        {"q_proj", "k_proj", "v_proj", "o_proj"},
        {"q_norm", "k_norm", "input_layernorm", "post_attention_layernorm", "norm"},
    ),
    "cohere": (  # a vector of each head's own in the norms of queries and keys
        lambda: CohereConfig(**GROUPED, use_qk_norm=True),
        {"q_proj", "k_proj", "v_proj", "o_proj"},
        {"q_norm", "k_norm", "input_layernorm", "norm"},
    ),
    "olmo": (lambda: OlmoConfig(**GROUPED), {"q_proj", "k_proj", "v_proj", "o_proj"}, set()),  # no weights
    "roberta-prelayernorm": (  # whose blocks are named ...LayerNorm... as well
        lambda: RobertaPreLayerNormConfig(**SIZES, is_decoder=True),
        {"query", "key", "value"},
        {"LayerNorm", "layer_norm"},
    ),
}


def short(names: list[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def build(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(ARCHITECTURES[name][0]()).to(dtype).eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_projections_and_norms_of_other_architectures(name: str) -> None:
    _, projections, norms = ARCHITECTURES[name]
    model = build(name)
    assert short(attention_projections(model)) == projections
    found = norm_layers(model)
    assert short(found) == norms
    leaves = [place for place, module in model.named_modules() if not list(module.children())]
    named_so = [place for place in leaves if "norm" in type(model.get_submodule(place)).__name__.lower()]
    assert set(found) == {place for place in named_so if list(model.get_submodule(place).parameters())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", ["phi3", "gpt2", "falcon", "mixtral", "deepseek_v3", "nemotron", "qwen3_next", "cohere"]
)
def test_other_architectures_train_save_load_and_merge(name: str, dtype: torch.dtype, tmp_path) -> None:
    before = logits_of(build(name, dtype)).float()
    model = lora_plus(build(name, dtype), rank=2)
    assert_close(logits_of(model.eval()).float(), before, atol=0.0 if dtype == torch.float32 else 0.05)
    logits_of(model.train()).float().square().mean().backward()
    check_gradients(model)
    expected = logits_of(randomized(model).eval())
    save_adapter(model, tmp_path)
    assert torch.equal(logits_of(load_adapter(build(name, dtype), tmp_path)), expected)
    scale = expected.float().abs().max().item()
    merged = logits_of(merge_adapter(model)).float()
    assert_close(merged, expected.float(), atol=(1e-5 if dtype == torch.float32 else 0.1) * scale)


def test_tied_output_layer_with_a_bias_is_an_error() -> None:
    model = tiny_model("llama-gqa", tie_word_embeddings=True)
    model.lm_head.bias = nn.Parameter(torch.ones(VOCABULARY))
    with pytest.raises(ValueError, match="would drop the bias of the output layer"):
        lora_plus(model)


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_checkpointing_switched_on_before(reentrant: bool) -> None:
    base = tiny_model("llama-gqa")
    enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model = lora_plus(base, train_embeddings=False).train()
    logits_of(model).square().mean().backward()
    check_gradients(model)


# ----------------------------------------------------------------------------- refused


def unchanged(model: nn.Module) -> None:
    assert not any("lora" in name or "modules_to_save" in name for name, _ in model.named_parameters())


def classifier() -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_config(tiny_config("llama-gqa"))


def without_head() -> PreTrainedModel:
    return AutoModel.from_config(tiny_config("llama-gqa"))


def encoder_decoder() -> PreTrainedModel:
    sizes = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCABULARY, **sizes))


def multimodal() -> PreTrainedModel:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 28, "patch_size": 14}
    text = GROUPED | {"head_dim": 8}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )


def state_space() -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (classifier, r"causal language model, got LlamaForSequenceClassification, .* AutoModelForCausalLM"),
        (without_head, r"causal language model, got LlamaModel, .* AutoModelForCausalLM"),
        (encoder_decoder, r"decoder-only text model, got T5ForConditionalGeneration"),
        (multimodal, r"decoder-only text model, got Gemma3ForConditionalGeneration \(model_type='gemma3'\)"),
        (state_space, r"no attention projections in MambaForCausalLM .*: no module whose class is named"),
    ],
)
def test_models_that_are_no_causal_transformers(make: Callable[[], PreTrainedModel], message: str) -> None:
    model = make()
    with pytest.raises(ValueError, match=message):
        lora_plus(model)
    unchanged(model)


def compiled(model: PreTrainedModel) -> nn.Module:
    return torch.compile(model)


def parallel(model: PreTrainedModel) -> nn.Module:
    return nn.DataParallel(model)


def adapted(model: PreTrainedModel) -> PeftModel:
    return lora_plus(model)


def with_prompts(model: PreTrainedModel) -> PeftModel:
    return get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (compiled, r"is compiled \(OptimizedModule\): take the model inside \({}\._orig_mod\)"),
        (parallel, r"is wrapped for several devices \(DataParallel\): take the model before"),
        (adapted, r"has an adapter already \(LoraPlusModel\): fold it in with merge_adapter"),
        (with_prompts, r"has learned prompts \(PREFIX_TUNING\), .* \({}\.get_base_model\(\)\)"),
        (lambda _: nn.Linear(2, 2), r"must be a transformers PreTrainedModel, got Linear"),
        (lambda _: "llama", r"must be a transformers PreTrainedModel, got str"),
    ],
)
def test_wrapped_models(wrap: Callable[[PreTrainedModel], object], message: str, tmp_path) -> None:
    model = wrap(tiny_model("llama-gqa"))
    with pytest.raises(TypeError, match="^model " + message.format("model")):
        lora_plus(model)
    save_adapter(lora_plus(tiny_model("llama-gqa")), tmp_path)
    with pytest.raises(TypeError, match="^base_model " + message.format("base_model")):
        load_adapter(model, tmp_path)


def test_models_divided_by_fsdp(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = torch.distributed.fsdp.fully_shard(tiny_model("llama-gqa"))
        with pytest.raises(TypeError, match=r"wrapped for several devices \(FSDPLlamaForCausalLM\)"):
            lora_plus(model)
    finally:
        torch.distributed.destroy_process_group()


def test_layers_of_an_adapter_inside() -> None:
    wrapped = lora_plus(tiny_model("llama-gqa"))
    with pytest.raises(ValueError, match=r"has layers of an adapter inside: .* merge_and_unload\(\)"):
        lora_plus(wrapped.get_base_model())
    assert trainable(lora_plus(merge_adapter(wrapped)))


class PackedLinear(nn.Module):
    """A layer as quantizers put it in the place of a linear one: packed integers."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("qweight", torch.zeros(layer.out_features, 1, dtype=torch.int8))


class OpaqueLinear(nn.Module):
    """One that does not even tell its sizes."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (OpaqueLinear, r"the layers of its quantization \(gptq\) are of no kind that peft adapts"),
        (PackedLinear, r"PackedLinear.* is not supported"),  # peft's own word, which names those that are
    ],
)
def test_quantized_models_without_layers_that_peft_adapts(layer: type[nn.Module], message: str) -> None:
    model = tiny_model("llama-gqa")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    for block in model.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(block.self_attn, name, layer(getattr(block.self_attn, name)))
    with pytest.raises(ValueError, match=message):
        lora_plus(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_another_base_of_the_same_sizes_is_told(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Also where the embeddings are trained, and in another dtype; the same base is loaded without a word."""
    can_be_trained = name != "roberta-prelayernorm"  # whose tied embeddings peft does not find
    save_adapter(randomized(lora_plus(build(name), train_embeddings=can_be_trained)), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_adapter(build(name, dtype), tmp_path)
    other = build(name)
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(weight.flip(0))
    with pytest.warns(UserWarning, match="the base model is another than the adapter was trained on"):
        load_adapter(other, tmp_path)
