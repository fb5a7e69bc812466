"""sinklora: SF-Attn fine-tuning and H2O inference for long-context language models, on stock libraries.

Names are loaded when first used, so that importing this package, or the parts that need PyTorch alone, stays
quick. `import sinklora.hf` also registers the attention that saved models with a pattern ask for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinklora.attention.dispatch import attend
    from sinklora.attention.kinds.windows import AttentionPattern
    from sinklora.attention.pattern import Pattern
    from sinklora.attention.patterns import (
        FIXED,
        FULL,
        PATTERNS,
        RANDOM,
        S2,
        S2_WRAPPED,
        SF,
        SF_SHIFTED,
        SHORT,
        STRIDE,
    )
    from sinklora.cache.full import Full
    from sinklora.cache.h2o import H2O
    from sinklora.cache.novelty import Novelty
    from sinklora.cache.policies import CachePolicy
    from sinklora.cache.sliding_window import Local, SlidingWindow
    from sinklora.cache.streaming_llm import StreamingLLM
    from sinklora.hf.budget_cache import BudgetCache
    from sinklora.hf.models import current_pattern, remove_pattern, use_pattern
    from sinklora.hf.rope import extend_context
    from sinklora.lora.adapter import check_gradients, lora_plus, merge_adapter
    from sinklora.lora.checkpoint import load_adapter, save_adapter
    from sinklora.lora.longlora_import import import_longlora

# Public name -> the module that defines it; the same names as above.
_HOMES = {
    "FIXED": "attention.patterns",
    "FULL": "attention.patterns",
    "H2O": "cache.h2o",
    "PATTERNS": "attention.patterns",
    "RANDOM": "attention.patterns",
    "S2": "attention.patterns",
    "S2_WRAPPED": "attention.patterns",
    "SF": "attention.patterns",
    "SF_SHIFTED": "attention.patterns",
    "SHORT": "attention.patterns",
    "STRIDE": "attention.patterns",
    "AttentionPattern": "attention.kinds.windows",
    "BudgetCache": "hf.budget_cache",
    "CachePolicy": "cache.policies",
    "Full": "cache.full",
    "Local": "cache.sliding_window",
    "Novelty": "cache.novelty",
    "Pattern": "attention.pattern",
    "SlidingWindow": "cache.sliding_window",
    "StreamingLLM": "cache.streaming_llm",
    "attend": "attention.dispatch",
    "check_gradients": "lora.adapter",
    "current_pattern": "hf.models",
    "extend_context": "hf.rope",
    "import_longlora": "lora.longlora_import",
    "load_adapter": "lora.checkpoint",
    "lora_plus": "lora.adapter",
    "merge_adapter": "lora.adapter",
    "remove_pattern": "hf.models",
    "save_adapter": "lora.checkpoint",
    "use_pattern": "hf.models",
}

__all__ = [
    "FIXED",
    "FULL",
    "H2O",
    "PATTERNS",
    "RANDOM",
    "S2",
    "S2_WRAPPED",
    "SF",
    "SF_SHIFTED",
    "SHORT",
    "STRIDE",
    "AttentionPattern",
    "BudgetCache",
    "CachePolicy",
    "Full",
    "Local",
    "Novelty",
    "Pattern",
    "SlidingWindow",
    "StreamingLLM",
    "attend",
    "check_gradients",
    "current_pattern",
    "extend_context",
    "import_longlora",
    "load_adapter",
    "lora_plus",
    "merge_adapter",
    "remove_pattern",
    "save_adapter",
    "use_pattern",
]


def __getattr__(name: str) -> Any:
    """A public name, from where it is defined (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'sinklora' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sinklora.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
