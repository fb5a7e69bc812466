"""Perplexity by several processes: each reads some of the documents, and all know the outcome."""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn

from sinklora.evaluate.perplexity import (
    DocumentScore,
    PerplexityResult,
    Short,
    checked_documents,
    result_of,
    score_documents,
)
from sinklora.evaluate.sliding_windows import windows_of


def perplexity_over_ranks(
    model: nn.Module,
    documents: Sequence[NDArray[np.integer[Any]]],
    *,
    context: int,
    stride: int,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    progress: bool = True,
    short: Short = "score",
    group: dist.ProcessGroup | None = None,
) -> PerplexityResult:
    """`measure_perplexity` by all processes of `group` (default: all there are), which share the documents.

    Every process has the whole model and is given the same documents; each gets the whole result. Arguments
    as there. Raises what that raises, in all processes alike, and RuntimeError where another process failed.
    """
    arrays, chosen = checked_documents(model, documents, context, stride, batch_size, short)
    if device is not None:
        model.to(device)
    costs = [sum(w.length for w in windows_of(i, len(arrays[i]), context, stride)) for i in chosen]
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    mine = [chosen[place] for place in balanced(costs, ranks)[rank]]
    scores: list[DocumentScore] = []
    failure: Exception | None = None
    try:
        scores = score_documents(
            model, arrays, mine, context, stride, batch_size, progress=progress and rank == 0
        )
    except Exception as error:  # told to the others, who would wait for ever
        failure = error
    told: list[Any] = [None] * ranks
    dist.all_gather_object(told, (scores, None if failure is None else str(failure)), group=group)
    if failure is not None:
        raise failure
    for number, (_, fault) in enumerate(told):
        if fault is not None:
            raise RuntimeError(f"process {number} of {ranks} failed: {fault}")
    everything = sorted((score for part, _ in told for score in part), key=lambda score: score.index)
    return result_of(model, everything, [len(array) for array in arrays], context, stride, short)


def balanced(costs: Sequence[float], shares: int) -> list[list[int]]:
    """The places of `costs` in so many shares of nearly equal sums, each in order; the largest first, to
    whoever has least (Graham 1969).
    """
    heap: list[tuple[float, int]] = [(0.0, share) for share in range(shares)]
    found: list[list[int]] = [[] for _ in range(shares)]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        total, share = heapq.heappop(heap)
        found[share].append(place)
        heapq.heappush(heap, (total + costs[place], share))
    return [sorted(places) for places in found]
