"""Patterns on transformers models: the truth is the same model under `sdpa` with a dense 4-D mask."""

import pytest
import torch
from transformers import PreTrainedModel

from helpers import assert_close, every_pair
from pattern_models import dense_logits, dense_model, gradients, pattern_logits
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.patterns import S2, SF, SF_SHIFTED, SHORT
from sinklora.hf.models import evaluates_with_pattern, use_pattern
from tiny_models import ARCHITECTURES, make_batch, tiny_model

LAYOUTS = ["plain", "left-padded", "right-padded", "packed"]
TRAINING_PATTERNS = {
    "short": SHORT,
    "s2": S2,
    "sf": SF,
    "sf_shifted": SF_SHIFTED,
    "sf-in-tokens": AttentionPattern(group_size=5, sink_tokens=2),
}


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


def test_a_model_with_a_pattern_compiles_in_evaluation() -> None:
    batch = make_batch("plain")
    model = use_pattern(tiny_model("llama-gqa", num_hidden_layers=1), SF)
    expected = pattern_logits(model, batch)
    torch.compiler.reset()
    assert_close(pattern_logits(torch.compile(model, backend="eager"), batch), expected, atol=1e-5)
