"""What a model's config says about its pattern: the JSON object `config.sinklora`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import pattern_from_dict

CONFIG_KEY = "sinklora"


@dataclass(frozen=True)
class PatternSettings:
    """A pattern, when it is used, and the attention implementation that it replaced."""

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
                "attn_implementation='sinklora' but the config holds no pattern: "
                "call sinklora.use_pattern(model, pattern)"
            )
        return cls(pattern_from_dict(stored["pattern"]), stored["evaluate_with_pattern"], stored["replaced"])
