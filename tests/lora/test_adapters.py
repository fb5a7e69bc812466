"""LoRA+ adapters: what is trained, and that saving, loading, merging and importing lose nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AfmoeConfig,
    AfmoeForCausalLM,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
)

from adapted_models import BATCH, logits_of, randomized, trainable
from helpers import assert_close
from sinklora.attention.patterns import S2, SF
from sinklora.hf.models import current_pattern, evaluates_with_pattern, use_pattern
from sinklora.hf.rope import extend_context
from sinklora.lora.adapter import check_gradients, lora_plus, merge_adapter
from sinklora.lora.checkpoint import load_adapter, save_adapter
from sinklora.lora.longlora_import import import_longlora
from sinklora.lora.trained_modules import attention_projections
from tiny_models import ARCHITECTURES, VOCABULARY, make_batch, tiny_model


def adapted_modules(model: PeftModel) -> tuple[set[str], set[str]]:
    """Short names of the modules with LoRA, and of those trained in full."""
    lora, saved = set(), set()
    for name in trainable(model):
        short = name.removeprefix("base_model.model.")
        (lora if ".lora_" in short else saved).add(short.split(".lora_")[0].split(".modules_to_save")[0])
    return lora, saved


def expected_modules(architecture: str) -> tuple[set[str], set[str]]:
    if architecture.startswith("neox"):
        layers = [f"gpt_neox.layers.{i}" for i in range(2)]
        lora = {f"{layer}.attention.{name}" for layer in layers for name in ("query_key_value", "dense")}
        norms = {
            f"{layer}.{name}" for layer in layers for name in ("input_layernorm", "post_attention_layernorm")
        }
        return lora, norms | {"gpt_neox.final_layer_norm", "gpt_neox.embed_in"}
    layers = [f"model.layers.{i}" for i in range(2)]
    lora = {f"{layer}.self_attn.{name}_proj" for layer in layers for name in "qkvo"}
    norms = {
        f"{layer}.{name}" for layer in layers for name in ("input_layernorm", "post_attention_layernorm")
    }
    if architecture.startswith("qwen3"):
        norms |= {f"{layer}.self_attn.{name}_norm" for layer in layers for name in "qk"}
    return lora, norms | {"model.norm", "model.embed_tokens"}


# ----------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapts_exactly_these_modules(architecture: str) -> None:
    model = tiny_model(architecture)
    expected = logits_of(model)
    wrapped = lora_plus(model, rank=3)
    assert adapted_modules(wrapped) == expected_modules(architecture)
    assert torch.equal(logits_of(wrapped), expected), "a new adapter must not change the model"


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("norms", [True, False])
def test_parts_can_be_left_out(embeddings: bool, norms: bool) -> None:
    wrapped = lora_plus(tiny_model("qwen3-gqa"), train_embeddings=embeddings, train_norms=norms)
    lora, saved = expected_modules("qwen3-gqa")
    wanted = {name for name in saved if (embeddings if name.endswith("embed_tokens") else norms)}
    assert adapted_modules(wrapped) == (lora, wanted)


def test_fused_convolution_projections() -> None:
    sizes = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, tie_word_embeddings=False)
    lora, saved = adapted_modules(lora_plus(AutoModelForCausalLM.from_config(config)))
    assert lora == {"transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj"}
    assert saved >= {"transformer.h.0.ln_1", "transformer.h.0.ln_2", "transformer.ln_f", "transformer.wte"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_trainable_numbers_are_float32_and_the_model_runs(dtype: torch.dtype, tied: bool) -> None:
    model = tiny_model("qwen3-gqa", tie_word_embeddings=tied).to(dtype)
    before = logits_of(model)
    wrapped = lora_plus(model).train()
    assert {value.dtype for value in trainable(wrapped).values()} == {torch.float32}
    frozen = {value.dtype for value in wrapped.parameters() if not value.requires_grad}
    assert frozen == {dtype}
    logits = logits_of(wrapped)
    assert logits.dtype == dtype
    assert_close(logits.float(), before.float(), atol=0.0 if dtype == torch.float32 else 0.05)
    logits.float().square().mean().backward()
    check_gradients(wrapped)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(logits_of(wrapped)).all()
    with wrapped.disable_adapter():
        assert torch.equal(logits_of(wrapped), before)


@pytest.mark.parametrize("architecture", ["llama-gqa", "gemma-mqa"])
def test_tied_embeddings_stay_tied(architecture: str, tmp_path) -> None:
    model = tiny_model(architecture, tie_word_embeddings=True)
    wrapped = randomized(lora_plus(model).train())
    step = torch.optim.SGD(trainable(wrapped).values(), lr=0.1)
    logits_of(wrapped).square().mean().backward()
    step.step()
    base = wrapped.get_base_model()
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight
    expected = logits_of(wrapped.eval())
    save_adapter(wrapped, tmp_path)
    loaded = load_adapter(tiny_model(architecture, tie_word_embeddings=True), tmp_path)
    assert torch.equal(logits_of(loaded), expected)
    base = loaded.get_base_model()
    assert base.get_output_embeddings().weight is base.get_input_embeddings().weight
    merged = merge_adapter(wrapped)
    head = merged.get_output_embeddings()
    assert head.weight is merged.get_input_embeddings().weight
    assert (head.in_features, head.out_features) == (32, VOCABULARY)
    assert_close(logits_of(merged), expected, atol=1e-5)


def test_tied_embeddings_under_another_name_are_an_error() -> None:
    model = tiny_model("neox-mha", tie_word_embeddings=True)
    with pytest.raises(ValueError, match="train_embeddings=False"):
        lora_plus(model)
    assert not any("lora" in name for name, _ in model.named_parameters()), "the model was changed"
    wrapped = lora_plus(model, train_embeddings=False)
    assert "gpt_neox.embed_in" not in adapted_modules(wrapped)[1]


# ----------------------------------------------------------------------------- gradients


def enable_checkpointing(model: nn.Module, reentrant: bool) -> None:
    base = model.get_base_model()
    enable = getattr(base, "activation_checkpointing_enable", base.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_trainable_tensor_learns_under_checkpointing(architecture: str, reentrant: bool) -> None:
    model = randomized(lora_plus(use_pattern(tiny_model(architecture), SF))).train()
    logits_of(model).square().mean().backward()
    expected = {name: value.grad.clone() for name, value in trainable(model).items()}
    model.zero_grad()
    enable_checkpointing(model, reentrant)
    logits_of(model).square().mean().backward()
    check_gradients(model)
    for name, value in trainable(model).items():
        assert value.grad.abs().max() > 0, f"{name} learns nothing"
        assert_close(value.grad, expected[name], atol=1e-5 * max(1.0, expected[name].abs().max().item()))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_check_gradients_names_untrained_tensors() -> None:
    model = lora_plus(tiny_model("llama-gqa"), train_embeddings=False).train()
    enable_checkpointing(model, reentrant=True)
    model.get_base_model().disable_input_require_grads()  # peft has switched it on
    logits_of(model).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"20 of 21 trainable tensors received no gradient: .*lora_A"):
        check_gradients(model)


class UnusedAttention(nn.Module):
    """As an encoder-decoder's cross-attention where no encoder is: it is there, and nothing passes it."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(4, 4)


def test_modules_outside_of_the_pass_can_be_taken_out_of_training() -> None:
    base = tiny_model("llama-gqa")
    base.model.layers[0].unused = UnusedAttention()
    model = lora_plus(base).train()
    logits_of(model).square().mean().backward()
    with pytest.raises(
        RuntimeError, match=r"2 of \d+ trainable .*unused.*requires_grad_\(False\)"
    ) as refused:
        check_gradients(model)
    for name in re.findall(r"[\w.]*unused[\w.]*weight", str(refused.value)):
        model.get_parameter(name).requires_grad_(False)
    check_gradients(model)


def test_check_gradients_before_training() -> None:
    with pytest.raises(RuntimeError, match="received no gradient"):
        check_gradients(lora_plus(tiny_model("llama-gqa")))
    with pytest.raises(RuntimeError, match="no parameter of the model is trainable"):
        check_gradients(tiny_model("llama-gqa").requires_grad_(False))


# ----------------------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loaded_adapter_gives_the_same_bits(architecture: str, dtype: torch.dtype, tmp_path) -> None:
    def base() -> PreTrainedModel:
        return tiny_model(architecture).to(dtype)

    model = randomized(lora_plus(base(), rank=3, alpha=5))
    save_adapter(model, tmp_path)
    loaded = load_adapter(base(), tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model.eval()))
    assert not torch.equal(logits_of(loaded), logits_of(base()))
    assert not trainable(loaded) and not loaded.training

    again = load_adapter(base(), tmp_path, trainable=True)
    assert trainable(again).keys() == trainable(model).keys()
    assert all(torch.equal(value, trainable(model)[name]) for name, value in trainable(again).items())


@pytest.mark.parametrize("method", ["linear", "dynamic", "yarn"])
def test_adapter_restores_rope_and_pattern(method: str, tmp_path) -> None:
    batch = make_batch("plain", tokens=100)
    model = extend_context(tiny_model("llama-gqa"), 128, method=method)
    use_pattern(model, S2, evaluate_with_pattern=True)
    model = randomized(lora_plus(model))
    save_adapter(model, tmp_path)
    loaded = load_adapter(tiny_model("llama-gqa"), tmp_path, trainable=True).train()
    assert current_pattern(loaded) == S2 and evaluates_with_pattern(loaded)
    assert loaded.config.rope_parameters == model.config.rope_parameters
    assert loaded.config.max_position_embeddings == model.config.max_position_embeddings
    actual = loaded(**batch.inputs, use_cache=False).logits
    assert torch.equal(actual, model.train()(**batch.inputs, use_cache=False).logits)


def test_loading_onto_an_extended_model(tmp_path) -> None:
    model = randomized(lora_plus(extend_context(tiny_model("llama-gqa"), 128)))
    save_adapter(model, tmp_path)
    loaded = load_adapter(extend_context(tiny_model("llama-gqa"), 256), tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model.eval()))


def test_files_of_an_adapter(tmp_path) -> None:
    model = randomized(lora_plus(use_pattern(extend_context(tiny_model("llama-gqa"), 128), SF)))
    save_adapter(model, tmp_path / "deep" / "adapter")
    directory = tmp_path / "deep" / "adapter"
    names = {path.name for path in directory.iterdir()}
    assert names == {"README.md", "adapter_config.json", "adapter_model.safetensors", "sinklora.json"}
    state = json.loads((directory / "sinklora.json").read_text())
    assert state["pattern"] == SF.to_dict()
    assert state["rope"]["rope_parameters"]["factor"] == 2.0
    saved = (directory / "adapter_model.safetensors").stat().st_size
    trained = sum(parameter.nbytes for parameter in trainable(model).values())
    assert trained < saved < trained + 8192


def test_saving_again_replaces(tmp_path) -> None:
    model = randomized(lora_plus(use_pattern(tiny_model("llama-gqa"), SF)))
    save_adapter(model, tmp_path)
    randomized(model, seed=6)
    use_pattern(model, S2)
    save_adapter(model, tmp_path)
    loaded = load_adapter(tiny_model("llama-gqa"), tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model.eval()))
    assert current_pattern(loaded) == S2


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 3}, {"hidden_size": 64}, {"vocab_size": 62}], ids=str
)
def test_adapter_of_another_model_is_an_error(change: dict[str, int], tmp_path) -> None:
    save_adapter(lora_plus(tiny_model("llama-gqa")), tmp_path)
    other = tiny_model("llama-gqa", **change)
    before = other.config.to_json_string()
    with pytest.raises(ValueError, match=f"belongs to another base model: {next(iter(change))}"):
        load_adapter(other, tmp_path)
    assert other.config.to_json_string() == before


# ----------------------------------------------------------------------------- merging


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_model_gives_the_same_logits(architecture: str, tmp_path) -> None:
    model = use_pattern(extend_context(tiny_model(architecture), 128), SF)
    model = randomized(lora_plus(model)).eval()
    expected = logits_of(model)
    rope = model.config.rope_parameters
    merged = merge_adapter(model)
    assert type(merged) is type(tiny_model(architecture))
    assert_close(logits_of(merged), expected, atol=1e-5)
    merged.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "sinklora" not in text and "attn_implementation" not in text
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.rope_parameters == rope and rope["factor"] == 2.0
    assert loaded.config.max_position_embeddings == 128
    assert torch.equal(logits_of(loaded), logits_of(merged))


def test_merged_model_needs_neither_sinklora_nor_peft(tmp_path) -> None:
    model = use_pattern(extend_context(tiny_model("llama-gqa"), 128), SF)
    merged = merge_adapter(randomized(lora_plus(model)).eval())
    merged.save_pretrained(tmp_path)
    torch.save(BATCH.inputs["input_ids"], tmp_path / "tokens.pt")
    program = (
        "import sys, torch\n"
        "sys.modules['peft'] = sys.modules['sinklora'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        f"tokens = torch.load({str(tmp_path / 'tokens.pt')!r}, weights_only=True)\n"
        f"torch.save(model(tokens, use_cache=False).logits.detach(), {str(tmp_path / 'logits.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), logits_of(merged).detach())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_merged_half_precision_model_is_all_half_precision(tied: bool) -> None:
    model = tiny_model("qwen3-gqa", tie_word_embeddings=tied).bfloat16()
    model = randomized(lora_plus(model)).eval()
    expected = logits_of(model).float()
    merged = merge_adapter(model)
    assert {value.dtype for value in merged.parameters()} == {torch.bfloat16}
    assert_close(logits_of(merged).float(), expected, atol=0.05 * expected.abs().max().item())
    assert not any("peft" in type(module).__module__ for module in merged.modules())


def test_merging_something_else_is_an_error() -> None:
    with pytest.raises(TypeError, match="must be a PeftModel"):
        merge_adapter(tiny_model("llama-gqa"))


# ----------------------------------------------------------------------------- LongLoRA's files


def write_longlora(directory: Path, base: PreTrainedModel, prefix: str = "") -> Tensor:
    """Write the two files as LongLoRA does, from plain peft and a plain state dict; returns the logits."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    torch.manual_seed(7)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora" in name or "embed" in name or "norm" in name:
                value.add_(0.1 * torch.randn(value.shape))
    state = model.state_dict()
    lora = {name.replace("default.", ""): value for name, value in state.items() if "lora" in name}
    kept = {n: v for n, v in state.items() if "lora" not in n and ("embed" in n or "norm" in n)}
    strip = len("base_model.model.")
    config.save_pretrained(directory)
    torch.save(lora, directory / "adapter_model.bin")
    torch.save(
        {prefix + name[strip:]: value for name, value in kept.items()}, directory / "trainable_params.bin"
    )
    return logits_of(model.eval()).detach()


@pytest.mark.parametrize("prefix", ["", "base_model.model."], ids=["stripped", "prefixed"])
def test_longlora_import(prefix: str, tmp_path) -> None:
    expected = write_longlora(tmp_path, extend_context(tiny_model("llama-mha"), 256), prefix)
    model = import_longlora(extend_context(tiny_model("llama-mha"), 256), tmp_path).eval()
    assert model.peft_config["default"].r == 4 and model.peft_config["default"].lora_alpha == 8
    assert_close(logits_of(model), expected, atol=1e-6)
    save_adapter(model, tmp_path / "converted")
    loaded = load_adapter(tiny_model("llama-mha"), tmp_path / "converted")
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert_close(logits_of(merge_adapter(loaded)), expected, atol=1e-5)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.bin", "trainable_params.bin"])
def test_longlora_import_with_a_file_missing(missing: str, tmp_path) -> None:
    write_longlora(tmp_path, tiny_model("llama-mha"))
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"LongLoRA's format: {missing} missing"):
        import_longlora(tiny_model("llama-mha"), tmp_path)


def test_longlora_import_with_added_tokens(tmp_path) -> None:
    grown = tiny_model("llama-mha")
    grown.resize_token_embeddings(VOCABULARY + 1)
    write_longlora(tmp_path, grown)
    with pytest.raises(
        ValueError, match=rf"call base_model.resize_token_embeddings\({VOCABULARY + 1}\) first"
    ):
        import_longlora(tiny_model("llama-mha"), tmp_path)


def test_longlora_import_leaves_nothing_out(tmp_path) -> None:
    write_longlora(tmp_path, tiny_model("llama-mha"))
    kept = torch.load(tmp_path / "trainable_params.bin", weights_only=True)
    kept["model.layers.9.input_layernorm.weight"] = kept.pop("model.norm.weight")
    torch.save(kept, tmp_path / "trainable_params.bin")
    with pytest.raises(ValueError, match=r"missing .*model.norm.weight; unknown .*layers.9.input_layernorm"):
        import_longlora(tiny_model("llama-mha"), tmp_path)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))


def test_longlora_import_runs_no_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_longlora(tmp_path, tiny_model("llama-mha"))
    torch.save({"model.norm.weight": Payload()}, tmp_path / "trainable_params.bin")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        import_longlora(tiny_model("llama-mha"), tmp_path)
    assert not (tmp_path / "executed").exists()


# ----------------------------------------------------------------------------- bad input and sizes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank=0: expected at least 1"),
        ({"rank": 2.0}, "rank=2.0: expected a whole number; write 2"),
        ({"alpha": 0}, "alpha=0: expected at least 1"),
        ({"alpha": "16"}, "alpha='16': expected a whole number; write 16, not text"),
        ({"dropout": 1.0}, "dropout=1.0: expected less than 1"),
        ({"dropout": -0.1}, "dropout=-0.1: expected at least 0"),
    ],
    ids=str,
)
def test_wrong_values(values: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        lora_plus(tiny_model("llama-gqa"), **values)


def test_what_peft_refuses_is_told_with_a_way_out() -> None:
    # The gate of its attention has the name of one that peft knows from experts.
    config = AfmoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_dense_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
    )
    with pytest.raises(
        ValueError, match=r"peft does not adapt the attention of AfmoeForCausalLM .*gate_proj"
    ):
        lora_plus(AfmoeForCausalLM(config))


def test_layers_that_multiply_in_groups_are_not_adapted() -> None:
    model = tiny_model("llama-gqa")
    grouped = model.model.layers[0].self_attn.o_proj
    grouped.n_groups = 2
    names = attention_projections(model)
    assert "model.layers.0.self_attn.o_proj" not in names
    assert "model.layers.1.self_attn.o_proj" in names


def test_wrong_models(tmp_path) -> None:
    wrapped = lora_plus(tiny_model("llama-gqa"))
    with pytest.raises(TypeError, match="model has an adapter already \\(LoraPlusModel\\): fold it in"):
        lora_plus(wrapped)
    with pytest.raises(TypeError, match="must be a PeftModel"):
        save_adapter(tiny_model("llama-gqa"), tmp_path)
    with pytest.raises(TypeError, match="base_model has an adapter already"):
        save_adapter(wrapped, tmp_path)
        load_adapter(wrapped, tmp_path)


def test_size_of_the_adapter_of_llama_2_7b() -> None:
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
    )
    with torch.device("meta"):
        model = lora_plus(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), rank=8)
    lora, embeddings, norms = 32 * 4 * 2 * 8 * 4096, 32000 * 4096, (2 * 32 + 1) * 4096
    assert sum(parameter.nbytes for parameter in trainable(model).values()) == 4 * (lora + embeddings + norms)


def test_an_adapter_that_other_processes_hold_is_not_saved(tmp_path: Path) -> None:
    model = lora_plus(tiny_model("llama-mha"))
    norm = next(p for name, p in model.named_parameters() if p.requires_grad and "norm" in name)
    norm.data = norm.data[:0]  # as ZeRO-3 leaves it
    with pytest.raises(ValueError, match="GatheredParameters"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
