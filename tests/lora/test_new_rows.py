"""Tokens added to a vocabulary: their rows are trained and saved, or a warning says what to do."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from adapted_models import logits_of, randomized, trainable
from helpers import assert_close
from sinklora.lora.adapter import lora_plus, merge_adapter
from sinklora.lora.checkpoint import load_adapter, save_adapter
from tiny_models import VOCABULARY, tiny_model

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def grown(seed: int, tied: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The base model with two tokens more, whose rows another process draws differently."""
    model = tiny_model("llama-gqa", tie_word_embeddings=tied)
    torch.manual_seed(seed)
    model.resize_token_embeddings(VOCABULARY + 2, mean_resizing=False)
    return model.to(dtype)


@DTYPES
def test_a_trained_output_layer_comes_back(dtype: torch.dtype, tmp_path: Path) -> None:
    model = randomized(lora_plus(grown(1, dtype=dtype), train_output_layer=True)).eval()
    assert any("lm_head" in name for name in trainable(model))
    save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the last row")
        loaded = load_adapter(grown(2, dtype=dtype), tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))
    expected = logits_of(model).float()
    merged = merge_adapter(model)
    assert {value.dtype for value in merged.parameters()} == {dtype}
    atol = 1e-5 if dtype == torch.float32 else 0.05 * expected.abs().max().item()
    assert_close(logits_of(merged).float(), expected, atol=atol)


def test_a_trained_output_layer_keeps_its_bias() -> None:
    model = tiny_model("llama-gqa")
    model.lm_head.bias = torch.nn.Parameter(torch.randn(VOCABULARY))
    wrapped = randomized(lora_plus(model, train_output_layer=True)).eval()
    expected = logits_of(wrapped)
    assert_close(logits_of(merge_adapter(wrapped)), expected, atol=1e-5)


@DTYPES
def test_other_rows_of_an_untrained_output_layer_are_named(dtype: torch.dtype, tmp_path: Path) -> None:
    model = randomized(lora_plus(grown(1, dtype=dtype))).eval()
    save_adapter(model, tmp_path)
    with pytest.warns(UserWarning, match=r"the last row of lm_head is not .* train_output_layer=True"):
        load_adapter(grown(2, dtype=dtype), tmp_path)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_other_rows_of_untrained_embeddings_are_named(tied: bool, tmp_path: Path) -> None:
    save_adapter(lora_plus(grown(1, tied), train_embeddings=False), tmp_path)
    names = "lm_head and model.embed_tokens"
    with pytest.warns(UserWarning, match=rf"the last row of {names} is not .* train_embeddings=True"):
        load_adapter(grown(2, tied), tmp_path)


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "loaded", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"]
)
def test_the_same_base_in_another_precision_is_not_warned_of(
    saved: torch.dtype, loaded: torch.dtype, tmp_path: Path
) -> None:
    tiny_model("llama-gqa").save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=saved)
    save_adapter(lora_plus(base, train_embeddings=False), tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the last row")
        load_adapter(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=loaded), tmp_path / "adapter"
        )


def test_rows_added_after_loading_are_named_at_once(tmp_path: Path) -> None:
    tiny_model("llama-gqa").save_pretrained(tmp_path)

    def resized() -> PreTrainedModel:
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
        model.resize_token_embeddings(VOCABULARY + 2)
        return model

    with pytest.warns(UserWarning, match=r"2 rows of lm_head are new .* pass train_output_layer=True, or"):
        lora_plus(resized())
    both = r"rows of model.embed_tokens and lm_head .* train_embeddings=True and train_output_layer=True"
    with pytest.warns(UserWarning, match=both):
        lora_plus(resized(), train_embeddings=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*are new since")
        lora_plus(resized(), train_output_layer=True)
        lora_plus(AutoModelForCausalLM.from_pretrained(tmp_path))


def test_tied_layers_are_trained_together() -> None:
    tied = tiny_model("llama-gqa", tie_word_embeddings=True)
    with pytest.raises(ValueError, match="both are trained or neither"):
        lora_plus(tied, train_embeddings=False, train_output_layer=True)
    trained = trainable(lora_plus(tied, train_output_layer=True)).values()
    assert sum(parameter.shape == (VOCABULARY, 32) for parameter in trained) == 1
