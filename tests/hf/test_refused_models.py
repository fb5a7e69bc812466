"""Models that cannot have a pattern are refused, and `use_pattern` leaves no other trace."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    FalconConfig,
    Gemma2Config,
    GPT2Config,
    GPTJConfig,
    OPTConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers import assert_close
from pattern_models import SMALL, dense_logits, dense_model, pattern_logits, small_model
from sinklora.attention.patterns import S2, SF, SHORT
from sinklora.hf.models import current_pattern, remove_pattern, use_pattern
from tiny_models import VOCABULARY, make_batch, tiny_model


@pytest.mark.parametrize(
    "config",
    [
        GPTJConfig(n_embd=32, n_layer=2, n_head=4, n_inner=32, rotary_dim=8, vocab_size=VOCABULARY),
        FalconConfig(**SMALL),
    ],
    ids=lambda config: config.model_type,
)
def test_architecture_without_the_interface_is_an_error(config: object) -> None:
    model = small_model(config)
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
        use_pattern(small_model(config), SF)


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
        model = small_model(config)
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


def test_remove_pattern_leaves_an_attention_that_was_set_since() -> None:
    model = tiny_model("llama-gqa")
    before = model.config.to_json_string()
    use_pattern(model, SF)
    model.set_attn_implementation("eager")  # to look at attention maps
    assert current_pattern(model) is None
    remove_pattern(model)
    assert model.config._attn_implementation == "eager"
    assert model.config.to_json_string() == before


def test_failed_change_keeps_the_old_pattern() -> None:
    model = use_pattern(tiny_model("llama-gqa"), S2)
    model.model.layers[1].self_attn = HalfHonest(model.model.layers[1].self_attn)
    with pytest.raises(ValueError, match="1 of 2"):
        use_pattern(model, SF)
    assert current_pattern(model) == S2
