"""sinklora: SF-Attn fine-tuning and H2O inference for long-context language models, on stock libraries."""

from sinklora.adapters import load_adapter, save_adapter
from sinklora.attention import attend
from sinklora.cache_policies import H2O, Full, Local, Novelty, StreamingLLM
from sinklora.kv_cache import BudgetCache
from sinklora.longlora_import import import_longlora
from sinklora.lora import check_gradients, lora_plus, merge_adapter
from sinklora.models import current_pattern, remove_pattern, use_pattern
from sinklora.patterns import (
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
    AttentionPattern,
)
from sinklora.rope import extend_context

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
    "Full",
    "Local",
    "Novelty",
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
