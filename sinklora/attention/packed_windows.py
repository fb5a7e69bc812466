"""Windows of packed documents: which token sits where, for attention that takes windows as a batch.

Everything is computed from `document_ids` in O(tokens); no [N, N] tensor is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.pattern import document_spans


@dataclass(frozen=True)
class Windows:
    """The windows of a batch of rows flattened to T = B*N tokens; every token lies in exactly one.

    `window` [T] and `slot` [T]: each token's window, and its place in it. For each of the W windows:
    `lengths`, `sinks` (sink tokens before its own first token), `document` (its document's first token).
    All int64.
    """

    window: Tensor
    slot: Tensor
    lengths: Tensor
    sinks: Tensor
    document: Tensor


@dataclass(frozen=True)
class Rows:
    """How to lay windows out: row `r` of the layout holds token `source[r]`.

    `home` [T] is the row of every token's own copy. `copies` [C] are rows of sink tokens repeated before a
    window, whose gradients go to the tokens `copied[copy_of]`; the rest is padding, which passes none.
    """

    source: Tensor
    home: Tensor
    copies: Tensor
    copied: Tensor
    copy_of: Tensor


def windows_of(pattern: AttentionPattern, shifted: bool, document_ids: Tensor) -> Windows:
    """The windows of un-shifted or `shifted` heads, for `document_ids` [B, N] (int)."""
    batch, num_tokens = document_ids.shape
    starts, lengths = document_spans(document_ids, num_tokens)
    row = torch.arange(batch, device=document_ids.device)[:, None] * num_tokens
    position = torch.arange(num_tokens, device=document_ids.device) - starts
    group = pattern.group_tokens(lengths)
    begin = pattern.window_start(position, shifted, group, lengths)
    slot = position - begin
    if pattern.wrapped and shifted:
        tail = pattern.wrapped_tail(group, lengths)
        joined = (begin == 0) & (tail < lengths)  # the first half window comes after the last one
        slot = torch.where(joined, lengths - tail + position, slot)
        begin = torch.where(joined, tail, begin)
    document = row + starts
    first, window, counts = torch.unique(document + begin, return_inverse=True, return_counts=True)
    sinks = begin.flatten()[first].clamp(max=pattern.sink_tokens)
    return Windows(window.flatten(), slot.flatten(), counts, sinks, document.flatten()[first])


def packed_rows(windows: Windows, with_sinks: bool) -> tuple[Rows, Tensor]:
    """Windows one after the other without padding, for varlen kernels; and where each starts, int32 [W+1]."""
    widths = windows.lengths + windows.sinks if with_sinks else windows.lengths
    ends = widths.cumsum(0)
    return _rows(windows, ends - widths, widths, with_sinks), torch.nn.functional.pad(ends, (1, 0)).int()


def padded_rows(windows: Windows) -> tuple[Rows, list[tuple[int, int]]]:
    """Windows of similar size padded at the end to one width; each such batch's `(count, width)`, in order.

    Padding stops at 1.5 times a window's size (or at 64 rows): short documents stay cheap beside long ones.
    """
    sizes = windows.lengths + windows.sinks
    classes = (sizes.clamp(min=64).float().log2() * 2).ceil().long()
    kinds, counts = torch.unique(classes, return_counts=True)
    widths = torch.zeros_like(sizes)
    batches = []
    for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
        members = classes == kind
        batches.append((count, int(sizes[members].max())))
        widths[members] = batches[-1][1]
    order = classes.argsort(stable=True)
    begins = torch.empty_like(widths)
    begins[order] = widths[order].cumsum(0) - widths[order]
    return _rows(windows, begins, widths, with_sinks=True), batches


def _rows(windows: Windows, begins: Tensor, widths: Tensor, with_sinks: bool) -> Rows:
    """Rows for windows that take `widths` [W] rows from `begins` [W] on: sinks, own tokens, padding."""
    token = torch.arange(len(windows.window), device=begins.device)
    sinks = windows.sinks if with_sinks else torch.zeros_like(windows.sinks)
    home = (begins + sinks)[windows.window] + windows.slot
    last = torch.empty_like(begins)
    is_last = windows.slot == windows.lengths[windows.window] - 1
    last[windows.window[is_last]] = token[is_last]
    # Padding repeats its own window's last token: whatever it holds stays within this window.
    order = begins.argsort()
    source = last[order].repeat_interleave(widths[order])
    source[home] = token
    nth = torch.arange(int(sinks.sum()), device=begins.device)
    nth = nth - (sinks.cumsum(0) - sinks).repeat_interleave(sinks)
    copies = begins.repeat_interleave(sinks) + nth
    source[copies] = windows.document.repeat_interleave(sinks) + nth
    copied, copy_of = source[copies].unique(return_inverse=True)
    return Rows(source, home, copies, copied, copy_of)


def rearrange(tokens: Tensor, rows: Rows) -> Tensor:
    """`tokens` [T, H, D] laid out as `rows` say: [R, H, D]; differentiable once."""
    return cast(Tensor, _Rearrange.apply(tokens, rows))


class _Rearrange(torch.autograd.Function):
    """`tokens[source]`, whose backward gathers too: far faster than accumulating into every row."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return tokens[rows.source]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows: Rows = ctx.rows
        result = grad[rows.home]
        if len(rows.copies):
            # A sink's gradient is a sum over many windows: too many to add up in half precision.
            precise = torch.promote_types(grad.dtype, torch.float32)
            total = result[rows.copied].to(precise)
            total.index_put_((rows.copy_of,), grad[rows.copies].to(precise), accumulate=True)
            result[rows.copied] = total.to(grad.dtype)
        return result, None


def collect(laid_out: Tensor, rows: Rows) -> Tensor:
    """Undoes `rearrange`: each token's own row of `laid_out` [R, H, D], as [T, H, D]; differentiable once."""
    return cast(Tensor, _Collect.apply(laid_out, rows))


class _Collect(torch.autograd.Function):
    """`laid_out[home]`; no row is taken twice, so that backward need not accumulate."""

    @staticmethod
    def forward(ctx: Any, laid_out: Tensor, rows: Rows) -> Tensor:
        ctx.rows = rows
        return laid_out[rows.home]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        result = grad.new_zeros(len(ctx.rows.source), *grad.shape[1:])
        result[ctx.rows.home] = grad
        return result, None
