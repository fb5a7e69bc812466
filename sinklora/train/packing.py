"""Examples of unequal length side by side in rows of bounded length."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit_rows(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Which examples stand in which row of at most `context` tokens: their indices, row by row.

    Best fit, decreasing: the longest first, each into the fullest row that has room for it, else into a new
    one; of equal ones the earlier first. It wastes less than filling rows in the order of the examples, and
    looks at nothing but lengths, so that the same examples always give the same rows. Raises ValueError for
    one that is longer than a row.
    """
    if lengths and max(lengths) > context:
        raise ValueError(f"lengths: {max(lengths)} is longer than a row of context={context}")
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # left in each row, and which row: in order
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(room, (lengths[index], 0))
        if place == len(room):
            rows.append([index])
            left, row = context - lengths[index], len(rows) - 1
        else:
            left, row = room.pop(place)
            rows[row].append(index)
            left -= lengths[index]
        insort(room, (left, row))
    return rows
