"""The exchange of a plan over torch.distributed: one all-to-all of the keys and values that others need.

Its backward pass is the same exchange the other way: gradients go back to the rank whose tokens they are of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from sinklora.attention.sequence_parallel.plan import Route

Group: TypeAlias = "dist.ProcessGroup | None"
"""The processes that hold one row together; None: all there are."""


def exchange(
    key: Tensor, value: Tensor, routes: Sequence[Route], group: Group
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of the tokens that each route holds: [T, H, D] and [T, H, Dv], differentiable once.

    `key` [B*S, Hkv, D] and `value` [B*S, Hkv, Dv] of the shard, of one dtype. All processes of the group call
    it, also those that receive nothing, and so do their backward passes.
    """
    rows = cast(tuple[Tensor, ...], _Exchange.apply(key, value, routes, group))
    return list(zip(rows[::2], rows[1::2], strict=True))


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, key: Tensor, value: Tensor, routes: Sequence[Route], group: Group
    ) -> tuple[Tensor, ...]:
        ctx.routes, ctx.group, ctx.shapes = routes, group, (key.shape, value.shape)
        own = [x[:, route.group.heads] for route in routes for x in (key, value)]
        whole = [x.new_empty(len(route.tokens), *x.shape[1:]) for route, x in _pairs(routes, own)]
        ranks = range(len(routes[0].sent))
        sent = [[x[route.sent[to]] for route, x in _pairs(routes, own)] for to in ranks]
        sizes = [[_elements(len(route.received[r]), x) for route, x in _pairs(routes, own)] for r in ranks]
        for r, pieces in enumerate(_all_to_all(sent, sizes, group)):
            for (route, x), piece in zip(_pairs(routes, whole), pieces, strict=True):
                x[route.received[r]] = piece.view(-1, *x.shape[1:])
        for (route, x), rows in zip(_pairs(routes, whole), own, strict=True):
            x[route.own] = rows
        return tuple(whole)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        routes: Sequence[Route] = ctx.routes
        ranks = range(len(routes[0].sent))
        back = [[x[route.received[r]] for route, x in _pairs(routes, grads)] for r in ranks]
        sizes = [[_elements(len(route.sent[to]), x) for route, x in _pairs(routes, grads)] for to in ranks]
        # Every rank adds to the gradient of a sink: too many to add up in half precision.
        precise = torch.promote_types(grads[0].dtype, torch.float32)
        own = [x[route.own].to(precise) for route, x in _pairs(routes, grads)]
        for to, pieces in enumerate(_all_to_all(back, sizes, ctx.group)):
            for (route, x), piece in zip(_pairs(routes, own), pieces, strict=True):
                x[route.sent[to]] += piece.view(-1, *x.shape[1:])  # no token twice in one piece
        result = [grads[0].new_empty(shape) for shape in ctx.shapes]
        for place, (route, x) in enumerate(_pairs(routes, own)):
            result[place % 2][:, route.group.heads] = x.to(grads[0].dtype)
        return result[0], result[1], None, None


def _pairs(routes: Sequence[Route], tensors: Sequence[Tensor]) -> list[tuple[Route, Tensor]]:
    """Each route twice, with its keys and with its values."""
    return list(zip((route for route in routes for _ in range(2)), tensors, strict=True))


def _elements(tokens: int, rows: Tensor) -> int:
    return tokens * math.prod(rows.shape[1:])


def _all_to_all(sent: list[list[Tensor]], sizes: list[list[int]], group: Group) -> list[list[Tensor]]:
    """What every rank sent here, of `sizes[r]` elements; `sent[r]` goes to rank r."""
    lengths = [sum(piece.numel() for piece in pieces) for pieces in sent]
    buffer = torch.cat([piece.flatten() for pieces in sent for piece in pieces])
    totals = [sum(counts) for counts in sizes]
    received = buffer.new_empty(sum(totals))
    dist.all_to_all_single(received, buffer, totals, lengths, group=group)
    return [list(x.split(counts)) for x, counts in zip(received.split(totals), sizes, strict=True)]
