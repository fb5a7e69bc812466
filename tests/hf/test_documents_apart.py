"""Packed rows are for models in which no document sees the one before it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2Config, OPTConfig, PreTrainedModel

from sinklora.hf.models import use_pattern
from sinklora.hf.probe import check_packing
from sinklora.train.examples import ExampleSource
from sinklora.train.instruction_spec import InstructionSpec
from sinklora.train.run import trainable_model
from sinklora.train.spec import TrainSpec
from tiny_models import tiny_model

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

REFUSED = "lets a document of a packed row see the one before it"


def hybrid() -> PreTrainedModel:
    """Its convolutions go on over the beginnings of documents."""
    config = Lfm2Config(
        **SIZES, intermediate_size=64, num_key_value_heads=2, layer_types=["conv", "full_attention"]
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def told_of_nothing() -> PreTrainedModel:
    """transformers makes no masks of documents for it; it has dropout."""
    config = OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=32, dropout=0.5)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@pytest.mark.parametrize("pattern", [None, "full", "sf", "s2", "short", "random"])
def test_attention_inside_of_documents_passes(pattern: str | None) -> None:
    model = tiny_model("llama-gqa", attention_dropout=0.5 if pattern is None else 0.0).eval()
    if pattern is not None:
        use_pattern(model, pattern)
    state, before = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    check_packing(model)
    assert not model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    check_packing(model.bfloat16())


@pytest.mark.parametrize("pattern", [None, "sf"])
def test_a_state_that_goes_on_is_refused(pattern: str | None) -> None:
    model = hybrid()
    if pattern is not None:
        use_pattern(model, pattern)
    with pytest.raises(ValueError, match=f"Lfm2ForCausalLM {REFUSED}"):
        check_packing(model)


def test_a_model_that_is_told_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=f"OPTForCausalLM {REFUSED}"):
        check_packing(told_of_nothing())


def test_training_refuses_such_a_base_where_it_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinklora.train.run.load_base", lambda spec: hybrid())
    examples = ExampleSource("jsonl:none.jsonl")
    common = {"base": "a hybrid", "pattern": "full", "method": "full", "bf16": False}
    packed = InstructionSpec(**common, examples=examples)
    with pytest.raises(ValueError, match=rf"pack=True: with base='a hybrid' and pattern='full': .*{REFUSED}"):
        trainable_model(packed)
    with pytest.raises(ValueError, match=r"separate_documents=True: with base='a hybrid'"):
        trainable_model(TrainSpec(**common, separate_documents=True))
    assert isinstance(trainable_model(TrainSpec(**common)), PreTrainedModel)
    assert trainable_model(InstructionSpec(**common, examples=examples, pack=False)) is not None
