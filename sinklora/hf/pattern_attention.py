"""The attention function and the mask function that transformers calls for `attn_implementation="sinklora"`.

Importing this module adds that name to transformers' registries and changes nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

from sinklora.attention.dispatch import attend
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import pattern_from_dict
from sinklora.hf.cache_attention import SCORE_CHANGING_ARGUMENTS, attend_cached, ids_or_mask, in_one_dtype
from sinklora.hf.document_ids import check_documents, full_attention_mask
from sinklora.hf.probe import record_call

ATTENTION_NAME = "sinklora"

CONFIG_KEY = "sinklora"


@dataclass(frozen=True)
class PatternSettings:
    """What a model's config says about its pattern (the JSON object `config.sinklora`)."""

    pattern: Pattern
    evaluate_with_pattern: bool = False
    replaced: str = "sdpa"

    def to_dict(self) -> dict[str, Any]:
        """JSON types only, so that `save_pretrained` keeps them."""
        return {
            "pattern": self.pattern.to_dict(),
            "evaluate_with_pattern": self.evaluate_with_pattern,
            "replaced": self.replaced,
        }

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> PatternSettings:
        """Read `config.sinklora`; ValueError when it is missing."""
        stored = getattr(config, CONFIG_KEY, None)
        if stored is None:
            raise ValueError(
                f"attn_implementation={ATTENTION_NAME!r} but the config holds no pattern: "
                "call sinklora.use_pattern(model, pattern)"
            )
        return cls(pattern_from_dict(stored["pattern"]), stored["evaluate_with_pattern"], stored["replaced"])


def pattern_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [B,H,N,D], key, value [B,Hkv,L,D] -> [B,N,H,D].

    The pattern while `module.training` (or always, if so configured), otherwise the `sdpa` function.
    `attention_mask` is what `pattern_mask` returned (document ids [B,N], a mask [B,1,N,L], or None), or a 4-D
    mask that the caller gave to the model.
    """
    cached = attend_cached(module, query, key, value, attention_mask, scaling, kwargs)
    if cached is not None:
        return cached, None
    settings = PatternSettings.from_config(module.config)
    query, key, value = in_one_dtype(query, key, value)
    if module.training or settings.evaluate_with_pattern:
        _check_call(module, query, key, attention_mask, dropout, kwargs)
        record_call(module, attention_mask)
        output = attend(query, key, value, settings.pattern, scale=scaling, document_ids=attention_mask)
        return output.transpose(1, 2).contiguous(), None
    if attention_mask is not None and attention_mask.ndim == 2:
        attention_mask = full_attention_mask(attention_mask)
    full = AttentionInterface()["sdpa"]
    return full(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)


def pattern_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    config: PreTrainedConfig | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """Mask function for `AttentionMaskInterface`; called once per forward, without knowing the model's mode.

    Whole sequences get document ids [B, N] instead of an N x N mask (see `ids_or_mask`).
    """
    if config is not None and not hasattr(config, "attn_implementation"):
        # transformers consumes this mark on loading; without it the next save would forget the pattern.
        config.attn_implementation = ATTENTION_NAME
    return ids_or_mask(batch_size, q_length, kv_length, config=config, **kwargs)


def _check_call(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    dropout: float,
    kwargs: dict[str, Any],
) -> None:
    changed = [name for name in SCORE_CHANGING_ARGUMENTS if kwargs.get(name) is not None]
    if changed:
        raise ValueError(f"{type(module).__name__} gives attention {changed}, which no pattern supports")
    if dropout > 0.0:
        raise ValueError(
            f"attention dropout {dropout} cannot be combined with a pattern: load the model with "
            "attention_dropout=0.0 (attn_pdrop=0.0 for GPT-2)"
        )
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        raise ValueError(f"{type(module).__name__} is not causal: patterns are for causal self-attention")
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            f"a pattern covers whole sequences, got {query.shape[2]} queries, {key.shape[2]} keys (a cache "
            "is being continued): call model.eval() before generating, and leave evaluate_with_pattern off"
        )
    if mask is not None and mask.ndim != 2:
        raise ValueError(
            "a pattern cannot be combined with a 4-D attention mask: pass a 2-D attention_mask, or None. "
            f"(Local attention, sliding_window={kwargs.get('sliding_window')}, makes one where it is shorter "
            f"than the {key.shape[2]} tokens given: load the model with sliding_window=None.)"
        )
    if getattr(module, "layer_idx", None) in (0, None):  # the same for all layers: check once
        check_documents(mask, kwargs.get("position_ids"))


AttentionInterface.register(ATTENTION_NAME, pattern_attention)

AttentionMaskInterface.register(ATTENTION_NAME, pattern_mask)
