"""Which architectures are served, and that refusals name the real cause and a remedy that works."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BloomConfig,
    Cohere2Config,
    CwmConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    DiffLlamaConfig,
    DogeConfig,
    DynamicCache,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPTJConfig,
    GptOssConfig,
    HrmTextConfig,
    JetMoeConfig,
    Llama4TextConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MistralConfig,
    ModernBertDecoderConfig,
    MptConfig,
    NanoChatConfig,
    Olmo3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3NextConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers import assert_close
from sinklora.attention.patterns import FULL, SF
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.hf.architecture import check_architecture
from sinklora.hf.attention import sinklora_attention
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.models import current_pattern, use_pattern
from tiny_models import VOCABULARY, tiny_model

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEAD = {"head_dim": 8}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
TWO_FULL = {"layer_types": ["full_attention"] * 2}
MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
LATENT |= {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "n_group": 1}
LATENT |= {"topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
ENCODER = {"attention_probs_dropout_prob": 0.25}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "vocab_size": VOCABULARY}


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    kinds = {"t5": T5ForConditionalGeneration, "llava": LlavaForConditionalGeneration}
    kind = kinds.get(config.model_type)
    model = AutoModelForCausalLM.from_config(config) if kind is None else kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def tokens(length: int = 12) -> Tensor:
    return torch.randint(3, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module, *lengths: int, **inputs: object) -> Tensor:
    """Of a row of tokens, given in calls of so many."""
    return torch.cat([model(input_ids=part, **inputs).logits for part in tokens().split(lengths, dim=1)], 1)


SERVED = {
    # Their layers call attention with a `use_cache` of their own, which says nothing of the caller's.
    "cwm": CwmConfig(**SIZES, **TWO_FULL),
    "nanochat": NanoChatConfig(**SIZES),
    "olmo3": Olmo3Config(**SIZES, **TWO_FULL),
    # Runs every layer several times a token, each time with keys and values of its own.
    "hrm": HrmTextConfig(
        **SIZES | HEAD | {"num_hidden_layers": 4}, num_layers_per_stack=1, H_cycles=2, L_cycles=1
    ),
    # A window as long as the context hides nothing.
    "mistral": MistralConfig(**SIZES, sliding_window=64),
}


@pytest.mark.parametrize("config", SERVED.values(), ids=SERVED)
def test_unusual_architectures_are_served(config: PreTrainedConfig) -> None:
    model = build(config)
    expected = logits(model, 8, 1, 3, past_key_values=DynamicCache(config=model.config))
    actual = logits(model, 8, 1, 3, past_key_values=BudgetCache(model, Full()))
    assert_close(actual, expected, atol=2e-5)
    assert current_pattern(use_pattern(model, FULL)) == FULL
    assert_close(logits(model.train(), 12, use_cache=False), logits(model.eval(), 12), atol=2e-5)


NO_INTERFACE = {
    "gptj": GPTJConfig(**OLD, rotary_dim=8),
    "falcon": FalconConfig(**SIZES),
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "mpt": MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
}
# By which words the cause is known, for a cache and for a pattern (None: the pattern serves it).
REFUSED: dict[str, tuple[PreTrainedConfig, str, str | None]] = {
    name: (config, "AttentionInterface.*use DynamicCache", "AttentionInterface.*Llama")
    for name, config in NO_INTERFACE.items()
}
REFUSED |= {
    "gemma2": (
        Gemma2Config(**SIZES, **HEAD, **TWO_FULL, attn_logit_softcapping=1.0),
        r"attn_logit_softcapping=1\.0.*DynamicCache",
        "softcap",
    ),
    "gpt-oss": (
        GptOssConfig(**SIZES, **HEAD, **TWO_FULL, **EXPERTS, rope_parameters={"rope_type": "default"}),
        r"learned attention sinks \(model\.layers\.0\.self_attn\.sinks.*DynamicCache",
        "s_aux",
    ),
    "deepseek-v2": (
        DeepseekV2Config(**SIZES | LATENT),
        "kv_lora_rank=8.*latent attention",
        None,
    ),
    "deepseek-v3": (
        DeepseekV3Config(**SIZES | LATENT),
        "kv_lora_rank=8.*latent attention",
        None,
    ),
    "qwen3-next": (
        Qwen3NextConfig(
            **SIZES,
            **HEAD,
            num_experts=2,
            num_experts_per_tok=1,
            layer_types=["linear_attention", "full_attention"],
        ),
        "qwen3_next stores more than the keys and values.*LinearAttentionLayer",
        None,
    ),
    "falcon-h1": (
        FalconH1Config(**SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8),
        "falcon_h1 stores more than the keys and values",
        None,
    ),
    "mamba": (
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4),
        "model_type='mamba' has no attention",
        "model_type='mamba' has no attention",
    ),
    "t5": (
        T5Config(vocab_size=VOCABULARY, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2),
        "model_type='t5', an encoder-decoder",
        "model_type='t5', an encoder-decoder",
    ),
    "llava": (
        LlavaConfig(
            text_config={"model_type": "llama", **SIZES},
            vision_config={
                "model_type": "clip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
        ),
        "model_type='llava', a multimodal one",
        "model_type='llava', a multimodal one",
    ),
}


def attention_of(model: PreTrainedModel) -> tuple[str, str]:
    return model.config._attn_implementation, model.config.to_json_string()


@pytest.mark.parametrize("name", REFUSED)
def test_the_cache_refuses_before_it_changes_the_model(name: str) -> None:
    config, words, _ = REFUSED[name]
    model = build(config)
    before = attention_of(model)
    with pytest.raises(ValueError, match=words):
        BudgetCache(model, H2O(8))
    assert attention_of(model) == before
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name][2]])
def test_a_refused_pattern_leaves_the_model_as_it_was(name: str) -> None:
    config, _, words = REFUSED[name]
    model = build(config)
    before = attention_of(model)
    plain = None if name in ("t5", "llava") else logits(model, 12)
    with pytest.raises(ValueError, match=words):
        use_pattern(model, SF)
    assert attention_of(model) == before
    if plain is not None:
        assert torch.equal(logits(model, 12), plain)


@pytest.mark.parametrize("name", [name for name in REFUSED if not REFUSED[name][2]])
def test_attention_of_hybrid_models_takes_a_pattern(name: str) -> None:
    model = build(REFUSED[name][0])
    assert current_pattern(use_pattern(model, FULL)) == FULL
    assert_close(logits(model.train(), 12, use_cache=False), logits(model.eval(), 12), atol=2e-5)


def test_layers_that_differ_in_their_heads() -> None:
    kind = getattr(transformers, "Dots3NoteTextConfig", None)
    if kind is None:
        pytest.skip("this version of transformers has no such model")
    with pytest.raises(ValueError, match=r"sliding_window=.* is shorter"):  # and not that it has no heads
        check_architecture(kind(vocab_size=VOCABULARY, max_position_embeddings=4096, sliding_window=128))


# Architectures that only a call tells.
REFUSED_WHEN_CALLED = {
    "bert": (BertConfig(**SIZES, **ENCODER), "BertSelfAttention is not causal"),
    "jetmoe": (JetMoeConfig(**SIZES, kv_channels=8, **EXPERTS), "keys that the cache did not hand out"),
    "diffllama": (
        DiffLlamaConfig(**SIZES),
        "attends to the same keys more than once",
    ),
    "doge": (DogeConfig(**SIZES), "DogeAttention makes its own"),
}


@pytest.mark.parametrize(("config", "words"), REFUSED_WHEN_CALLED.values(), ids=REFUSED_WHEN_CALLED)
def test_calls_that_would_be_wrong_are_refused(config: PreTrainedConfig, words: str) -> None:
    model = build(config)
    before, plain = attention_of(model), logits(model, 12)
    with pytest.raises(ValueError, match=words):
        logits(model, 12, past_key_values=BudgetCache(model, Full()))
    assert attention_of(model) == before
    assert torch.equal(logits(model, 12), plain)


@pytest.mark.parametrize("changes", [[2.0], [None, None]], ids=["other values", "a second time"])
def test_attention_to_something_else_than_was_stored_is_refused(changes: list[float | None]) -> None:
    model = tiny_model("llama-gqa")
    layer = BudgetCache(model, Full()).budget_layers[0]
    key, value = layer.update(torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8))
    with pytest.raises(ValueError, match="LlamaAttention changes the values that it stores, or attends"):
        for factor in changes:
            given = value if factor is None else factor * value
            sinklora_attention(model.model.layers[0].self_attn, torch.ones(1, 4, 3, 8), key, given, None)


class Deaf(nn.Module):
    """An attention layer that keeps nothing."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.value = layer.v_proj

    def forward(self, hidden_states: Tensor, **_: object) -> tuple[Tensor, None]:
        return hidden_states, None


def test_layers_that_take_no_notice_of_the_cache_are_found() -> None:
    model = tiny_model("llama-gqa")
    model.model.layers[1].self_attn = Deaf(model.model.layers[1].self_attn)
    with pytest.raises(ValueError, match=r"layers \[1\] took no notice of the cache"):
        logits(model, 12, past_key_values=BudgetCache(model, Full()))


def test_patterns_name_masks_that_an_architecture_makes_itself() -> None:
    model = build(DogeConfig(**SIZES))
    with pytest.raises(ValueError, match=r"DogeForCausalLM failed .* makes masks of its own"):
        use_pattern(model, SF)


def test_patterns_know_that_an_encoder_is_not_causal() -> None:
    with pytest.raises(ValueError, match="BertSelfAttention is not causal: patterns are"):
        use_pattern(build(BertConfig(**SIZES)), SF)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (
            BertConfig(**SIZES, **ENCODER, is_decoder=True),
            "attention_probs_dropout_prob",
        ),
        (Olmo3Config(**SIZES, **TWO_FULL, attention_dropout=0.25), "attention_dropout"),
    ],
    ids=["bert", "olmo3"],
)
def test_attention_dropout_is_named_as_the_config_names_it(config: PreTrainedConfig, name: str) -> None:
    with pytest.raises(ValueError, match=f"load the model with {name}=0.0"):
        use_pattern(build(config), SF)


# --- local attention ----------------------------------------------------------------------------------------

LOCAL = {
    "mistral": MistralConfig(**SIZES, sliding_window=8),
    "qwen2": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "olmo3": Olmo3Config(**SIZES, **MIXED),
    "gemma3": Gemma3TextConfig(**SIZES, **HEAD, **MIXED),
    "cohere2": Cohere2Config(**SIZES, **MIXED),
    "modernbert": ModernBertDecoderConfig(
        **SIZES, local_attention=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "llama4": Llama4TextConfig(
        **SIZES,
        **HEAD,
        **EXPERTS,
        intermediate_size_mlp=48,
        attention_chunk_size=8,
        layer_types=["chunked_attention", "full_attention"],
    ),
}
REFUSERS: dict[str, Callable[[nn.Module], object]] = {
    "cache": lambda model: BudgetCache(model, Full()),
    "pattern": lambda model: use_pattern(model, FULL),
}


@pytest.mark.parametrize("refuser", REFUSERS.values(), ids=REFUSERS)
@pytest.mark.parametrize("config", LOCAL.values(), ids=LOCAL)
def test_the_remedy_for_local_attention_works(
    config: PreTrainedConfig, refuser: Callable[[nn.Module], object], tmp_path: Path
) -> None:
    model = build(config)
    before = attention_of(model)
    with pytest.raises(ValueError, match="shorter than max_position_embeddings=64") as refusal:
        refuser(model)
    assert attention_of(model) == before
    model.save_pretrained(tmp_path)
    advice = re.search(r"load the model with (\w+)=(.+?) \(full attention", str(refusal.value))
    assert advice is not None
    arguments = {"sliding_window=None": {"sliding_window": None}}
    arguments['layer_types=["full_attention"] * 2'] = TWO_FULL
    changed = AutoModelForCausalLM.from_pretrained(tmp_path, **arguments[f"{advice[1]}={advice[2]}"]).eval()
    refuser(changed)
    assert (logits(changed, 12) - logits(model, 12)).abs().max() > 1e-3  # it was local, and is no longer
    expected = logits(changed, 8, 4, past_key_values=DynamicCache(config=changed.config))
    actual = logits(changed, 8, 4, past_key_values=BudgetCache(changed, Full()))
    assert_close(actual, expected, atol=2e-5)


def test_more_tokens_than_the_window_are_refused() -> None:
    model = build(MistralConfig(**SIZES | {"max_position_embeddings": 10}, sliding_window=10))
    cache = BudgetCache(model, Full())
    with pytest.raises(ValueError, match="12 tokens are more than sliding_window=10"):
        logits(model, 8, 4, past_key_values=cache)


# --- peft ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refuser", REFUSERS.values(), ids=REFUSERS)
def test_prefix_tuning_is_refused(refuser: Callable[[nn.Module], object]) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(tiny_model("llama-gqa"), config).eval()
    with pytest.raises(ValueError, match="PREFIX_TUNING fills past_key_values itself"):
        refuser(model)
    assert model.config._attn_implementation == "sdpa"


def test_prompt_tuning_goes_through_the_cache() -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(tiny_model("llama-gqa"), config).eval()
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    options |= {"input_ids": tokens(), "attention_mask": torch.ones_like(tokens())}
    expected = model.generate(**options, past_key_values=DynamicCache())
    cache = BudgetCache(model, Full())
    assert model.generate(**options, past_key_values=cache).tolist() == expected.tolist()
    assert cache.get_seq_length() == 4 + 12 + 5
