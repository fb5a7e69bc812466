"""Patterns, caches and LoRA+ on a few architectures of every sort; benchmarks/architectures.py takes all."""

import copy

import pytest
import torch
from architecture_checks import WORKS, WrongError, check_cache, check_lora_plus, check_pattern
from architectures import Row, as_markdown, examine
from tiny_architectures import architectures, build, tiny_config

import sinklora

WORKING = (
    "llama",
    "mistral",  # local attention, switched off as the refusal says
    "qwen3_moe",  # experts, norms of queries and keys
    "gpt_neox",  # one fused projection
    "olmo2",
    "phi3",
    "opt",  # learned positions
    "cohere",
    "stablelm",
    "biogpt",
)
REFUSED = ("gptj", "falcon")  # attention of their own


@pytest.mark.parametrize("architecture", WORKING)
def test_everything_works(architecture: str) -> None:
    row = examine(architecture)
    assert row.unbuilt == ""
    assert {claim: found for claim, found in row.found.items() if not found.startswith(WORKS)} == {}


@pytest.mark.parametrize("architecture", REFUSED)
def test_refusals_give_their_reason(architecture: str) -> None:
    found = examine(architecture).found
    assert "does not use transformers' AttentionInterface" in found["cache"]
    assert "does not use transformers' AttentionInterface" in found["pattern"]


def test_latent_attention_takes_patterns() -> None:
    assert examine("deepseek_v3").found["pattern"] == WORKS


def test_checks_see_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check goes red when the thing it is about is broken."""
    model = build(tiny_config("llama"))
    monkeypatch.setattr(sinklora, "Full", lambda: sinklora.Local(8))
    with pytest.raises(WrongError, match="logits differ"):
        check_cache(copy.deepcopy(model))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: None)
    with pytest.raises(WrongError, match="does not change"):
        check_lora_plus(copy.deepcopy(model))
    monkeypatch.setattr(sinklora, "SF", sinklora.FULL)
    with pytest.raises(WrongError, match="no effect"):
        check_pattern(model)


def test_the_table_gives_each_reason_once() -> None:
    works = {"cache": WORKS, "pattern": WORKS, "LoRA+": "yes (window off)"}
    refused = works | {"cache": "LlamaForCausalLM cannot"}, works | {"cache": "MistralForCausalLM cannot"}
    rows = [Row("llama", refused[0]), Row("mistral", refused[1]), Row("blt", unbuilt="too large")]
    page = as_markdown(rows)
    assert "| llama | LlamaForCausalLM | no [1] | yes | yes (window off) |" in page
    assert "1. (class) cannot (llama, mistral)" in page and "\n2. " not in page
    assert "- blt: too large" in page and "Of 2 models: cache 0, pattern 2, LoRA+ 2." in page


def test_all_architectures_have_a_config() -> None:
    assert len(architectures()) > 100 and {*WORKING, *REFUSED} <= set(architectures())
