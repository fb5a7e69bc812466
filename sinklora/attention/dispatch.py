"""`attend`: exact attention by a pattern, for windows in time and memory proportional to what they see.

On the CPU other patterns (fixed, stride, random) hold their mask.
"""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor

from sinklora.attention.backends import BACKENDS, HALF_PRECISION
from sinklora.attention.pattern import Pattern
from sinklora.attention.varlen_windows import MISSING, missing_varlen


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    document_ids: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention in which head `h` of token `i` sees the tokens that `pattern` lets it see.

    `query` [B, H, N, D], `key` [B, Hkv, N, D] and `value` [B, Hkv, N, Dv], H a multiple of Hkv, of one
    floating-point dtype on one device -> [B, H, N, Dv] (Dv is D, but for latent attention). `scale` > 0,
    default 1/sqrt(D). `document_ids` [B, N] (int): runs of equal ids are documents, which never see each
    other; each is attended as it would be alone, whatever it is packed with. `backend`: "auto", "dense",
    "masked", "sdpa", "sdpa_tiles", "flash_attn", "varlen" or "flex" (backends.py).

    TypeError or ValueError for inputs that do not fit, ValueError for a backend that cannot serve them here,
    ImportError where its package is missing. SinkLoRA, arXiv 2406.05678, section 3.
    """
    _check_backend(backend)
    _check_pattern(pattern)
    check_tensors(query, key, value)
    check_scale(scale)
    _check_documents(document_ids, query)
    if document_ids is not None and bool((document_ids == document_ids[:, :1]).all()):
        document_ids = None  # one document per row: no index needed
    if document_ids is not None and pattern.whole_rows_only:
        raise ValueError(f"{pattern} is for rows of one document without padding: leave document_ids out")
    if backend == "auto":
        backend = _best_backend(query, value, pattern, document_ids)
    obstacle = _obstacle(backend, query, pattern)
    if backend in MISSING and value.shape[3] != query.shape[3]:
        obstacle = f"takes values of the head size of keys, {query.shape[3]}, got {value.shape[3]}"
    if obstacle:
        raise ValueError(f"backend={backend!r} {obstacle}: use backend='auto'")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return BACKENDS[backend](query, key, value, pattern, scale, document_ids)

    return pattern.around(attention, query, key, value)


def available_backends(query: Tensor, pattern: Pattern) -> list[str]:
    """The backends that serve `pattern` for tensors like `query` on this machine."""
    missing = {name for name, reason in MISSING.items() if reason()}
    return [name for name in BACKENDS if name not in missing and not _obstacle(name, query, pattern)]


def _best_backend(query: Tensor, value: Tensor, pattern: Pattern, ids: Tensor | None) -> str:
    windows = pattern.windows()
    if windows is None:
        return "flex" if query.is_cuda else "masked"
    # `sdpa` pads the windows of documents to one size, and copies rows where windows of several sizes do not
    # divide them (a shift); a call for windows of any size does neither. Where equal windows are views, and
    # where sinks have to be copied anyway, there is nothing to gain.
    uneven = ids is not None or (windows.shifted_fraction > 0 and not windows.sink_tokens)
    # A graph for rows of any length cannot list the windows that it will have.
    fits = value.shape[3] == query.shape[3] and not windows.wrapped and not torch.compiler.is_compiling()
    usable = uneven and fits and query.is_cuda and not missing_varlen()
    return "varlen" if usable and not _obstacle("varlen", query, pattern) else "sdpa"


def _obstacle(backend: str, query: Tensor, pattern: Pattern) -> str:
    """Why `backend` cannot serve these inputs; empty if it can."""
    if backend in ("flash_attn", "varlen", "flex") and not query.is_cuda:
        package = (
            " and the package flash-attn (pip install 'sinklora[gpu]')" if backend == "flash_attn" else ""
        )
        return f"needs tensors on a CUDA device{package}, got {query.device}"
    if backend == "sdpa_tiles" and query.is_cuda:
        return f"is for tensors on the CPU, got {query.device}"
    if backend in ("sdpa", "sdpa_tiles", "flash_attn", "varlen") and pattern.windows() is None:
        return f"computes windows, which {type(pattern).__name__} does not consist of"
    if backend in MISSING and query.dtype not in HALF_PRECISION:
        return f"computes in float16 or bfloat16, got {query.dtype}"
    if backend == "varlen":
        return _varlen_obstacle(query)
    return ""


def _varlen_obstacle(query: Tensor) -> str:
    """What PyTorch's own kernel is not made for; `query` is on a CUDA device."""
    size, (major, minor) = query.shape[-1], torch.cuda.get_device_capability(query.device)
    if size % 8 or size > 256:
        return f"takes heads of a multiple of 8 up to 256, got {size}"
    return "" if major >= 8 else f"needs a GPU of compute capability 8.0 or newer, this is {major}.{minor}"


def _check_backend(backend: Any) -> None:
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}")


def _check_pattern(pattern: Any) -> None:
    if not isinstance(pattern, Pattern):
        raise TypeError(f"pattern must be a Pattern such as sinklora.SF, got {pattern!r}")


def check_scale(scale: Any) -> None:
    """Raise ValueError unless scores can be multiplied by `scale`."""
    if scale is None:
        return
    # Not zero or less: PyTorch's CPU kernel scales after masking, which turns -inf into NaN or +inf.
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < inf:
        raise ValueError(f"scale must be a positive number, or None for 1/sqrt(D), got {scale!r}")


def check_tensors(query: Any, key: Any, value: Any) -> None:
    """Raise TypeError or ValueError, naming the tensor, unless such queries can attend to such keys."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor [B, H, N, D], got {type(x).__name__}")
        if x.ndim != 4:
            raise ValueError(f"{name} must have 4 dimensions [B, H, N, D], got shape {list(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}: convert it first")
        if x.numel() == 0:
            raise ValueError(
                f"{name} must not be empty, got shape {list(x.shape)}: leave empty sequences out"
            )
        if x.dtype != query.dtype or x.device != query.device:
            raise ValueError(
                f"{name} must share query's dtype and device, {query.dtype} on {query.device}, "
                f"got {x.dtype} on {x.device}: convert with .to(query)"
            )
    _check_shapes(query, key, value)


def _check_shapes(query: Tensor, key: Tensor, value: Tensor) -> None:
    (batch, heads, num_tokens, size), kv_heads = query.shape, key.shape[1]
    if tuple(key.shape) != (batch, kv_heads, num_tokens, size):
        raise ValueError(
            f"key must match query in batch, tokens and head size, got query {list(query.shape)} and key "
            f"{list(key.shape)} (patterns cover whole sequences: decode with the model's own attention)"
        )
    if value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value must match key in batch, heads and tokens, got key {list(key.shape)} and value "
            f"{list(value.shape)}"
        )
    if heads % kv_heads:
        raise ValueError(f"query heads must be a multiple of key heads, got {heads} and {kv_heads}")


def _check_documents(document_ids: Any, query: Tensor) -> None:
    if document_ids is None:
        return
    rows = [query.shape[0], query.shape[2]]
    if not isinstance(document_ids, Tensor):
        raise TypeError(f"document_ids must be a tensor [B, N] = {rows}, got {type(document_ids).__name__}")
    if list(document_ids.shape) != rows:
        raise ValueError(f"document_ids must have shape [B, N] = {rows}, got {list(document_ids.shape)}")
    if document_ids.is_floating_point() or document_ids.is_complex():
        raise ValueError(f"document_ids must be integers, got {document_ids.dtype}")
    if document_ids.device != query.device:
        raise ValueError(f"document_ids must be on {query.device} like query, got {document_ids.device}")
