"""Which token belongs to which document, read from what transformers hands to mask and attention functions.

Document ids are int64 [B, N]: 0 marks padding, 1, 2, ... the documents of a row in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class LostDocumentsError(ValueError):
    """Document starts were given to the model but did not reach its attention."""


def find_document_ids(
    batch_size: int,
    num_tokens: int,
    *,
    mask_function: MaskFunction,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> tuple[bool, Tensor | None]:
    """(True, ids) when the mask of a whole sequence is causal attention inside documents, else (False, None).

    ids is None for one document without padding. The arguments are those of transformers' mask functions:
    `mask_function(b, h, q, kv)` works on index tensors, `attention_mask` is the boolean [B, N] padding mask.
    """
    if use_vmap or (local_size is not None and local_size < num_tokens):
        return False, None
    ids = None
    if not allow_is_causal_skip and num_tokens > 1:
        # Neighbours tell everything: seeing the next token is not causal, not seeing the
        # previous one starts a document.
        row = torch.arange(batch_size, device=device)[:, None]
        head = torch.zeros_like(row)
        if isinstance(row, FakeTensor):
            return True, None  # without values to look at (memory is being estimated): one document
        earlier = torch.arange(max(num_tokens - 1, 0), device=device)[None, :]
        if bool(mask_function(row, head, earlier, earlier + 1).any()):
            return False, None
        same = mask_function(row, head, earlier + 1, earlier).expand(batch_size, -1)
        ids = 1 + torch.nn.functional.pad((~same).long().cumsum(-1), (1, 0))
    if attention_mask is not None:
        real = attention_mask[:, :num_tokens].long()
        ids = real if ids is None else ids * real
    if ids is not None and bool((ids == 1).all()):
        ids = None
    return True, ids


def full_attention_mask(ids: Tensor) -> Tensor:
    """The boolean [B, 1, N, N] mask with which transformers' `sdpa` gives full attention inside documents.

    Padding is never seen; padded queries see what is not padded and not later, as they do in transformers.
    """
    num_tokens = ids.shape[1]
    causal = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=ids.device).tril()
    query, key = ids[:, None, :, None], ids[:, None, None, :]
    return causal & (key > 0) & ((key == query) | (query == 0))


def padding_of(mask: Tensor, check: bool = True) -> Tensor | None:
    """Document ids (0 is padding, 1 is not; None: no padding) of new tokens with a boolean mask [B, 1, N, N].

    A mask that hides anything but padding and later tokens is returned as it is; it is looked for if `check`.
    A compiled graph cannot look at values: a single token counts as real there.
    """
    if mask.dtype != torch.bool or mask.shape[2] != mask.shape[3]:
        return mask
    if mask.shape[3] == 1 and torch.compiler.is_compiling():
        return None
    real = mask[:, 0].diagonal(dim1=-2, dim2=-1)
    if check and not torch.equal(mask, mask.new_ones(mask.shape[2:]).tril() & real[:, None, None]):
        return mask
    return None if bool(real.all()) else real.long()


def has_gaps(ids: Tensor) -> bool:
    """True where the tokens of a document are not contiguous: padding in the middle of it."""
    before = torch.nn.functional.pad(ids, (1, 0))[:, :-1]
    runs = ((ids != before) & (ids > 0)).sum(-1)
    return bool((runs != ids.amax(-1)).any())


def has_restarts(ids: Tensor | None, position_ids: Tensor | None) -> bool:
    """True where positions restart inside what the ids call one document: its start was lost on the way."""
    if position_ids is None or position_ids.ndim != 2 or isinstance(position_ids, FakeTensor):
        return False
    restarts = position_ids[:, 1:] <= position_ids[:, :-1]
    if ids is not None:
        restarts = restarts & (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] > 0)
    return bool(restarts.any())


def has_other_documents(ids: Tensor | None, lengths: Tensor | None, row: int) -> bool:
    """True where cumulative `lengths` begin a document inside what the ids [B, N] call one.

    They are FlashAttention's, of all rows one after the other; without ids, `row` tokens are one.
    """
    if lengths is None or isinstance(lengths, FakeTensor):
        return False
    starts = lengths[(lengths > 0) & (lengths < lengths[-1])].long()
    if ids is None:
        return bool((starts % row != 0).any())
    begins = torch.nn.functional.pad(ids[:, 1:] != ids[:, :-1], (1, 0), value=True).flatten()
    return not bool(begins[starts[starts < len(begins)]].all())
