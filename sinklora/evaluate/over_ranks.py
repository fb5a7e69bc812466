"""Work on many things shared by several processes: each does some of it, and all know the outcome."""

import heapq
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed as dist

Outcome = TypeVar("Outcome")


def shared(
    work: Callable[[list[int]], list[Outcome]],
    things: Sequence[int],
    costs: Sequence[float],
    group: dist.ProcessGroup,
) -> list[Outcome]:
    """What `work` makes of `things`, in their order, done by all processes of `group` in shares of nearly
    equal `costs`; every process gets all of it, an outcome for each thing.

    Raises what `work` raises, and RuntimeError in all other processes.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    shares = balanced(costs, ranks)
    outcomes: list[Outcome] = []
    failure: Exception | None = None
    try:
        outcomes = work([things[place] for place in shares[rank]])
    except Exception as error:  # told to the others, who would wait for ever
        failure = error
    told: list[Any] = [None] * ranks
    dist.all_gather_object(told, (outcomes, None if failure is None else str(failure)), group=group)
    if failure is not None:
        raise failure
    for number, (_, fault) in enumerate(told):
        if fault is not None:
            raise RuntimeError(f"process {number} of {ranks} failed: {fault}")
    by_place = {
        place: outcome
        for places, (part, _) in zip(shares, told, strict=True)
        for place, outcome in zip(places, part, strict=True)
    }
    return [by_place[place] for place in range(len(things))]


def balanced(costs: Sequence[float], shares: int) -> list[list[int]]:
    """The places of `costs` in so many shares of nearly equal sums, each in order; the largest first, to
    whoever has least (Graham 1969).
    """
    heap: list[tuple[float, int]] = [(0.0, share) for share in range(shares)]
    by_share: list[list[int]] = [[] for _ in range(shares)]
    for place in sorted(range(len(costs)), key=lambda place: -costs[place]):
        total, share = heapq.heappop(heap)
        by_share[share].append(place)
        heapq.heappush(heap, (total + costs[place], share))
    return [sorted(places) for places in by_share]
