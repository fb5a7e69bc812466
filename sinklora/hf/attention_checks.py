"""What a call of attention may ask for: each refusal gives its reason before anything is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sinklora.attention.pattern import document_spans
from sinklora.attention.sequence_parallel.shard import SequenceShard
from sinklora.hf.architecture import attention_layers, full_attention_argument
from sinklora.hf.document_ids import (
    LostDocumentsError,
    has_gaps,
    has_other_documents,
    has_restarts,
    padding_of,
)

# Arguments by which some architectures change scores or hide keys: none may be dropped without a word.
SCORE_CHANGING_ARGUMENTS = frozenset(
    {"softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices"}
)


def check_pattern_call(
    module: Any,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    dropout: float,
    arguments: dict[str, Any],
) -> None:
    """ValueError where a pattern cannot answer, or would answer another question."""
    _check_scores(module, arguments, "no pattern supports")
    _check_causal(module, arguments, "patterns are")
    _check_dropout(module, dropout)
    if query.shape[2] != key.shape[2]:
        raise ValueError(
            f"a pattern covers whole sequences, got {query.shape[2]} queries, {key.shape[2]} keys (a cache "
            "is being continued): call model.eval() before generating, and leave evaluate_with_pattern off"
        )
    if mask is not None and mask.ndim != 2:
        raise ValueError(
            "a pattern cannot be combined with a 4-D attention mask: pass a 2-D attention_mask, or None. "
            f"(Local attention, sliding_window={arguments.get('sliding_window')}, makes one where it is "
            f"shorter than the {key.shape[2]} tokens given: load the model with "
            f"{full_attention_argument(module.config)}.)"
        )
    if _is_first(module):
        _check_gaps(mask)
        _check_starts(mask, arguments, query.shape[2])


def check_sharded_call(
    module: Any,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    dropout: float,
    shard: SequenceShard,
    arguments: dict[str, Any],
) -> None:
    """ValueError where attention over cut rows would answer another question.

    What sees what is told by the shard's document ids alone: a `mask` may say nothing that they do not.
    """
    _check_scores(module, arguments, "no pattern supports")
    _check_causal(module, arguments, "patterns are")
    _check_dropout(module, dropout)
    window, tokens = arguments.get("sliding_window"), shard.document_ids.shape[1]
    if query.shape[2] != key.shape[2] or (window is not None and window < tokens):
        raise ValueError(
            f"rows cut over several processes are attended as wholes, got {query.shape[2]} queries, "
            f"{key.shape[2]} keys and sliding_window={window} in rows of {tokens}: leave caches out, and "
            f"load the model with {full_attention_argument(module.config)}"
        )
    if mask is not None and (mask.ndim != 2 or bool((mask == 0).any())):
        raise ValueError(
            "attention_mask cannot be combined with sequence_shard: leave it out, and give padding document "
            "ids of its own in the shard's document_ids"
        )
    if _is_first(module):
        _check_sharded_starts(query.shape[2], shard, arguments.get("position_ids"))
        if has_other_documents(shard.document_ids, arguments.get("cu_seq_lens_q"), tokens):
            raise LostDocumentsError(
                "cu_seq_lens_q names documents of whole rows that the document_ids of sequence_shard do not: "
                "leave it out, and give each document an id of its own"
            )


def _check_sharded_starts(length: int, shard: SequenceShard, positions: Tensor | None) -> None:
    if positions is None:
        return
    starts = shard.part(document_spans(shard.document_ids, shard.document_ids.shape[1])[0])
    if bool(((starts[:, 0] < shard.rank * length) & (positions[:, 0] == 0)).any()):
        raise ValueError(
            "position_ids begin at 0 within a document, whose earlier tokens other processes hold: pass "
            "those that sequence_shard.part takes of whole rows"
        )
    filled = shard.part(shard.document_ids) < 0  # positions mean nothing there
    if has_restarts((starts + 1).masked_fill(filled, 0), positions):
        raise LostDocumentsError(
            "position_ids restart inside what the document_ids of sequence_shard call one document: give "
            "each document an id of its own, for instance (position_ids == 0).cumsum(1) of whole rows"
        )


def check_evaluation_call(
    module: Any, query: Tensor, key: Tensor, mask: Tensor | None, arguments: dict[str, Any]
) -> None:
    """LostDocumentsError where full attention would read packed documents as one."""
    whole = query.shape[2] == key.shape[2] > 1
    if whole and (mask is None or mask.ndim == 2) and _is_first(module):
        _check_starts(mask, arguments, query.shape[2])


def check_cached_call(
    module: Any,
    seen: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    arguments: dict[str, Any],
    masks_are_made: bool = False,
) -> Tensor | None:
    """Which of the new tokens [B, Q] are no padding, None where none is, after `seen` tokens in the cache.

    `masks_are_made`: transformers has made a 4-D mask of padding, as `generate` does for compiled caches.
    ValueError where a BudgetCache cannot answer.
    """
    if module.training:
        raise ValueError("a BudgetCache evicts and cannot be trained through: call model.eval() first")
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise ValueError(
            "a BudgetCache gives no gradients: call the model under torch.no_grad() (generate does), or "
            "leave the cache out where gradients are wanted"
        )
    _check_scores(module, arguments, "a BudgetCache cannot follow")
    _check_causal(module, arguments, "a BudgetCache is")
    window = arguments.get("sliding_window")
    if window is not None and int(seen) + query.shape[2] > window:
        raise ValueError(
            f"{seen + query.shape[2]} tokens are more than sliding_window={window}, which a BudgetCache "
            "cannot apply: keep below it, or choose a model without local attention"
        )
    if key.shape[-1] != value.shape[-1]:
        raise ValueError(
            f"{type(module).__name__} has keys of size {key.shape[-1]} and values of size {value.shape[-1]} "
            "(multi-head latent attention), which a BudgetCache cannot hold: use transformers' DynamicCache"
        )
    if mask is not None and mask.ndim == 4 and masks_are_made:
        mask = padding_of(mask, check=_is_first(module))
    if mask is not None and mask.ndim != 2:
        raise ValueError(
            "a BudgetCache cannot be combined with a 4-D attention mask: pass a 2-D one, or None (where "
            f"{type(module).__name__} makes its own, use transformers' DynamicCache)"
        )
    if query.shape[2] > 1 and _is_first(module):
        positions = arguments.get("position_ids")
        lengths = arguments.get("cu_seq_lens_q")
        packed = has_restarts(mask, positions) or has_other_documents(mask, lengths, query.shape[2])
        if packed or (mask is not None and int(mask.max()) > 1):
            raise LostDocumentsError("a BudgetCache holds one document a row: unpack the rows, or pad them")
    return None if mask is None else mask > 0


def _check_dropout(module: Any, dropout: float) -> None:
    if dropout > 0.0:
        raise ValueError(
            f"attention dropout {dropout} cannot be combined with a pattern: load the model with "
            f"{_dropout_name(module.config, dropout)}=0.0"
        )


def _check_scores(module: Any, arguments: dict[str, Any], which: str) -> None:
    if SCORE_CHANGING_ARGUMENTS.isdisjoint(arguments):
        return
    changed = sorted(x for x in SCORE_CHANGING_ARGUMENTS.intersection(arguments) if arguments[x] is not None)
    if changed:
        raise ValueError(f"{type(module).__name__} gives attention {changed}, which {which}")


def _check_causal(module: Any, arguments: dict[str, Any], what: str) -> None:
    causal = arguments.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise ValueError(f"{type(module).__name__} is not causal: {what} for causal self-attention")


def _check_gaps(ids: Tensor | None) -> None:
    if ids is not None and has_gaps(ids):
        raise ValueError(
            "attention_mask has gaps: the tokens of a row must be contiguous, padded on the left or right"
        )


def _check_starts(ids: Tensor | None, arguments: dict[str, Any], tokens: int) -> None:
    if has_restarts(ids, arguments.get("position_ids")):
        raise LostDocumentsError(
            "position_ids restart inside a row, but transformers recognises packed documents only without an "
            "attention_mask and without a cache: pass attention_mask=None and use_cache=False (a few "
            "architectures, such as OPT, cannot be given packed documents at all)"
        )
    if has_other_documents(ids, arguments.get("cu_seq_lens_q"), tokens):
        raise LostDocumentsError(
            "cu_seq_lens_q names documents that the position_ids do not: pass position_ids that restart with "
            "each (DataCollatorWithFlattening(return_position_ids=True)), attention_mask=None and "
            "use_cache=False"
        )


def _dropout_name(config: Any, dropout: float) -> str:
    """The attribute of a config that set this attention dropout."""
    named = {name: value for name, value in config.to_dict().items() if "drop" in name and value == dropout}
    return next((name for name in named if "att" in name), "attention_dropout")


def _is_first(module: Any) -> bool:
    """True for the first layer that attends: what is the same for all layers is checked once."""
    index = getattr(module, "layer_idx", None)
    return index is None or index == next(iter(attention_layers(module.config)), 0)
