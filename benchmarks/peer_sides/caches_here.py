"""sinklora's caches and transformers' own, in whatever environment has both or the latter."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from peer_sides.cache_subject import CacheSubject, OpenCache, PlainCache
from peer_sides.subject import CannotRunError, Setting


def open_subject(asked: dict[str, Any], setting: Setting) -> CacheSubject:
    """The cache that `asked["cache"]` names."""
    from transformers import AutoModelForCausalLM

    name = asked["cache"]
    _check_there(name)
    if name == "sliding window":
        model = with_window(setting.model, int(setting.budget * setting.prompt))
    else:
        model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=torch.float32).eval()
    return CacheSubject(partial(open_cache, asked, model, setting), setting)


def _check_there(name: str) -> None:
    import transformers
    from transformers import cache_utils

    if name == "SinkCache" and not hasattr(cache_utils, name):
        raise CannotRunError(f"transformers {transformers.__version__} has no SinkCache any more")


def with_window(folder: str, window: int) -> Any:
    """A Llama's weights as a Mistral, whose layers see so many of the newest tokens."""
    from safetensors.torch import load_file
    from transformers import AutoConfig, MistralConfig, MistralForCausalLM

    config = AutoConfig.from_pretrained(folder).to_dict()
    if config["model_type"] != "llama" or config.get("attention_bias"):
        raise CannotRunError(
            f"a {config['model_type']} cannot be read as a Mistral, which has sliding windows"
        )
    for name in ("model_type", "architectures", "transformers_version", "layer_types"):
        config.pop(name, None)
    model: Any = MistralForCausalLM(MistralConfig(**config | {"sliding_window": window, "dtype": "float32"}))
    weights = load_file(f"{folder}/model.safetensors")
    missing = set(model.load_state_dict(weights, strict=False).missing_keys) - {"lm_head.weight"}
    if missing:
        raise CannotRunError(f"the weights lack {sorted(missing)[0]}")
    model.tie_weights()
    return model.float().eval()


def open_cache(asked: dict[str, Any], model: Any, setting: Setting) -> OpenCache:
    """The cache, empty."""
    from transformers import cache_utils

    kind = asked["cache"]
    if kind in OURS:
        return BudgetedCache(model, kind, setting)
    if kind == "StaticCache":
        return StaticallyHeld(
            model, cache_utils.StaticCache(model.config, max_cache_len=setting.prompt + setting.steps)
        )
    if kind == "QuantizedCache":
        quantized = cache_utils.QuantizedCache(asked["backend"], model.config, **asked.get("options", {}))
        return QuantizedTokens(model, quantized)
    if kind == "SinkCache":
        return PlainCache(model, cache_utils.SinkCache(int(setting.budget * setting.prompt), 4))
    return PlainCache(model, cache_utils.DynamicCache(config=model.config))


OURS = ("Full", "H2O", "SnapKV", "StreamingLLM", "Local")


class StaticallyHeld(PlainCache):
    """Its tensors have room for all tokens from the start."""

    def held(self) -> int:
        return int(self.cache.get_seq_length())


class QuantizedTokens(PlainCache):
    """Some tokens in few bits, the newest ones as they came."""

    def held(self) -> int:
        return int(self.cache.get_seq_length())


class BudgetedCache(PlainCache):
    """A BudgetCache, which says what it keeps."""

    def __init__(self, model: Any, kind: str, setting: Setting) -> None:
        import sinklora

        policy = getattr(sinklora, kind)
        made = policy() if kind == "Full" else policy(setting.budget)
        super().__init__(model, sinklora.BudgetCache(model, made))

    def positions(self) -> list[Tensor] | None:
        layers = range(self.model.config.num_hidden_layers)
        return [self.cache.kept_positions(layer=layer)[0] for layer in layers]

    def held(self) -> int:
        return int((self.cache.kept_positions(layer=0)[0] >= 0).sum(-1).max())
