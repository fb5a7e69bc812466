"""Windows of any size in one call of a variable-length attention kernel, without padding.

The causal mask of such a kernel ends at the last key, so that keys may be [sinks; window] where queries are
the window alone. Windows that follow one another in memory are attended where they lie.
"""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.layout import flat_rows, head_chunks, join, one_document, unflat_rows, windows_in
from sinklora.attention.packed_windows import collect, packed_rows, rearrange, windows_of
from sinklora.attention.pattern import Pattern


class Kernel(Protocol):
    """Causal attention in sequences that lie one after the other."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        longest_query: int,
        longest_key: int,
        scale: float,
    ) -> Tensor:
        """Queries [T, H, D], keys and values [L, Hkv, D] -> [T, H, D]; H is a multiple of Hkv.

        Sequence i has the queries from `query_starts[i]` to `query_starts[i + 1]`, and keys likewise (int32);
        its last query sees all its keys, the one before all but one, and so on.
        """


def attend_windows(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    scale: float,
    ids: Tensor | None,
    kernel: Kernel,
) -> Tensor:
    """Attention by a pattern of windows: one call of the kernel for each chunk of heads."""
    windows = windows_in(pattern)
    outputs = []
    for q, k, v, shifted in head_chunks(query, key, value, windows):
        if ids is None and not windows.sink_tokens and not (windows.wrapped and shifted):
            outputs.append(_in_place(q, k, v, windows, shifted, scale, kernel))
        else:
            outputs.append(_gathered(q, k, v, windows, shifted, scale, ids, kernel))
    return join(outputs, dim=1)


def _in_place(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: AttentionPattern,
    shifted: bool,
    scale: float,
    kernel: Kernel,
) -> Tensor:
    """Windows one after the other, as the tokens are: a shift moves their starts and copies nothing."""
    batch, _, num_tokens, _ = query.shape
    bounds = pattern.window_boundaries(num_tokens, shifted)
    starts = [row * num_tokens + start for row in range(batch) for start in bounds[:-1]]
    at = torch.tensor([*starts, batch * num_tokens], dtype=torch.int32, device=query.device)
    longest = max(end - start for start, end in pairwise(bounds))
    q, k, v = (flat_rows(x) for x in (query, key, value))
    return unflat_rows(kernel(q, k, v, at, at, longest, longest, scale), batch)


def _gathered(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: AttentionPattern,
    shifted: bool,
    scale: float,
    ids: Tensor | None,
    kernel: Kernel,
) -> Tensor:
    """Windows that are put together first: with sinks, of documents, or of two halves."""
    windows = windows_of(pattern, shifted, one_document(query, ids))
    query_rows, query_starts = packed_rows(windows, with_sinks=False)
    key_rows, key_starts = packed_rows(windows, with_sinks=True)
    output = kernel(
        rearrange(flat_rows(query), query_rows),
        rearrange(flat_rows(key), key_rows),
        rearrange(flat_rows(value), key_rows),
        query_starts,
        key_starts,
        int(query_starts.diff().max()),
        int(key_starts.diff().max()),
        scale,
    )
    return unflat_rows(collect(output, query_rows), query.shape[0])


def flash_attn_kernel() -> Kernel:
    """The kernel of the package flash-attn; ImportError where it is not installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        reason = missing_flash_attn() or "cannot import flash_attn"
        raise ImportError(f"backend='flash_attn' {reason}, or use backend='auto'") from error

    def kernel(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        longest_query: int,
        longest_key: int,
        scale: float,
    ) -> Tensor:
        output: Tensor = flash_attn_varlen_func(
            query,
            key,
            value,
            query_starts,
            key_starts,
            longest_query,
            longest_key,
            softmax_scale=scale,
            causal=True,
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
        return output

    return kernel


def torch_kernel() -> Kernel:
    """`varlen_attn` of PyTorch; ImportError where it has none, or one that does not take what is needed."""
    missing = missing_varlen()
    if missing:
        raise ImportError(f"backend='varlen' {missing}, or use backend='auto'")
    from torch.nn.attention.varlen import varlen_attn

    takes_groups = "enable_gqa" in inspect.signature(varlen_attn).parameters

    def kernel(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        longest_query: int,
        longest_key: int,
        scale: float,
    ) -> Tensor:
        options: dict[str, Any] = {"enable_gqa": True} if takes_groups else {}
        if not takes_groups:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        output: Any = varlen_attn(
            query,
            key,
            value,
            query_starts,
            key_starts,
            longest_query,
            longest_key,
            scale=scale,
            window_size=(-1, 0),  # causal
            **options,
        )
        return cast(Tensor, output)

    return kernel


def missing_flash_attn() -> str:
    """What is missing for the kernel of flash-attn; empty if nothing is."""
    return "" if find_spec("flash_attn") else "needs the package flash-attn: pip install 'sinklora[gpu]'"


def missing_varlen() -> str:
    """What is missing for PyTorch's own kernel; empty if nothing is."""
    if find_spec("torch.nn.attention.varlen"):
        from torch.nn.attention.varlen import varlen_attn

        if {"scale", "window_size"} <= set(inspect.signature(varlen_attn).parameters):
            return ""
    return f"needs varlen_attn with a scale and windows, which PyTorch {torch.__version__} lacks: update it"


MISSING = {"flash_attn": missing_flash_attn, "varlen": missing_varlen}
