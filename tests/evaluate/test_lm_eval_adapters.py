"""Adapters through lm-evaluation-harness: scored as the merged model, with the positions of training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from helpers import assert_close
from sinklora.attention.patterns import SF
from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.hf.models import current_pattern, use_pattern
from sinklora.hf.rope import extend_context
from sinklora.lora.adapter import lora_plus, merge_adapter
from sinklora.lora.checkpoint import load_adapter, save_adapter
from tiny_models import tiny_model

TOKENIZER = "data/base"
TEXT = "def add(first, second):\n    return first + second\n\n\n" * 12
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "tokenizer": TOKENIZER}
OWN, LONG = 64, 256  # tokens of the base, and of what is extended


def trained(model: PeftModel) -> PeftModel:
    """Every trainable number moved, as after training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def base(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def scores(model: HFLM) -> list[float]:
    """Of texts beyond the base's own length, and within it."""
    pairs = [(TEXT[:700], TEXT[700:760]), (TEXT[:40], TEXT[40:60])]
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    return [score for score, _ in model.loglikelihood(asked, disable_tqdm=True)]


def generated(model: HFLM) -> list[str]:
    asked = Instance("generate_until", {}, (TEXT[:300], {"until": ["\n\n\n\n"], "max_gen_toks": 8}), 0)
    return list(model.generate_until([asked], disable_tqdm=True))


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    sizes = {"vocab_size": 4096, "max_position_embeddings": OWN, "tie_word_embeddings": request.param}
    tiny_model("llama-gqa", **sizes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of sinklora on the base, extended to four times its length."""
    folder = tmp_path_factory.mktemp("adapter")
    model = use_pattern(extend_context(base(base_folder), LONG), SF)
    save_adapter(trained(lora_plus(model, rank=4)), folder)
    return folder


@pytest.fixture(scope="module")
def merged(base_folder: Path, adapter: Path) -> HFLM:
    """The truth: one plain model of the adapter's weights and positions, in the harness's own hands."""
    model = merge_adapter(load_adapter(base(base_folder), adapter)).eval()
    return HFLM(pretrained=model, tokenizer=TOKENIZER, backend="causal")


@pytest.mark.parametrize("cache", [{}, {"kv": "local", "budget": LONG}], ids=["full", "local"])
@pytest.mark.parametrize("given", ["peft", "object"])
def test_an_adapter_is_scored_as_the_merged_model_is(
    base_folder: Path, adapter: Path, merged: HFLM, given: str, cache: dict[str, Any]
) -> None:
    if given == "peft":
        ours = LMEvalModel(str(base_folder), peft=str(adapter), **OPTIONS, **cache)
    else:
        ours = LMEvalModel(load_adapter(base(base_folder), adapter), tokenizer=TOKENIZER, **cache)
    assert ours.max_length == merged.max_length == LONG
    assert current_pattern(ours.model) == SF and not ours.model.training
    assert_close(scores(ours), scores(merged), atol=2e-3)
    assert generated(ours) == generated(merged)


def test_dynamic_positions_are_used_to_their_end(base_folder: Path, tmp_path: Path) -> None:
    model = trained(lora_plus(extend_context(base(base_folder), LONG, method="dynamic"), rank=4))
    save_adapter(model, tmp_path)
    ours = LMEvalModel(str(base_folder), peft=str(tmp_path), **OPTIONS)
    assert ours.max_length == LONG and ours.model.config.max_position_embeddings == OWN
    truth = HFLM(pretrained=merge_adapter(model), tokenizer=TOKENIZER, backend="causal", max_length=LONG)
    assert_close(scores(ours), scores(truth), atol=2e-3)
    assert LMEvalModel(str(base_folder), peft=str(tmp_path), max_length=90, **OPTIONS).max_length == 90


@pytest.mark.parametrize("in_full", [None, ["embed_tokens", "norm"]], ids=["matrices", "embeddings too"])
def test_a_plain_peft_adapter(base_folder: Path, in_full: list[str] | None, tmp_path: Path) -> None:
    model = base(base_folder)
    config = LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=in_full,
        ensure_weight_tying=in_full is not None and model.config.tie_word_embeddings,
        task_type="CAUSAL_LM",
    )
    plain = trained(get_peft_model(model, config))
    plain.save_pretrained(tmp_path)
    ours = [
        LMEvalModel(str(base_folder), peft=str(tmp_path), **OPTIONS),
        LMEvalModel(plain, tokenizer=TOKENIZER),
    ]
    found = [scores(model) for model in ours]
    truth = HFLM(pretrained=plain.merge_and_unload(), tokenizer=TOKENIZER, backend="causal")
    for one in found:
        assert_close(one, scores(truth), atol=2e-3)
    assert ours[0].max_length == OWN


def test_what_is_no_adapter_of_the_base_is_refused(base_folder: Path, adapter: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_model("llama-mha", vocab_size=4096, hidden_size=64).save_pretrained(other)
    for given, words in (
        (
            (str(other), {"peft": str(adapter)}),
            "another base model: hidden_size=32 there, 64 here",
        ),
        ((str(base_folder), {"peft": str(other)}), r"peft=.*is no adapter, adapter_config\.json is missing"),
        ((str(base_folder), {"peft": "no/such/adapter"}), "peft='no/such/adapter': no adapter there"),
        ((str(adapter), {}), "pretrained=.*: is an adapter; name the base model"),
        ((base(base_folder), {"peft": str(adapter)}), "peft=.*: is for pretrained by name"),
    ):
        (pretrained, options), arguments = given, {**OPTIONS}
        with pytest.raises(ValueError, match=words):
            LMEvalModel(pretrained, **arguments, **options)


def test_a_model_without_a_name_needs_a_tokenizer() -> None:
    nameless = tiny_model("llama-gqa", vocab_size=4096)
    with pytest.raises(ValueError, match="tokenizer: the model has no name"):
        LMEvalModel(nameless)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    assert LMEvalModel(lora_plus(nameless), tokenizer=tokenizer).tokenizer is tokenizer
