"""Searches for the longest text that fits."""

from bisect import bisect
from collections.abc import Callable


def longest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 0 to `most` that fits, where every smaller one does; 0 if none."""
    return bisect(range(1, most + 1), False, key=lambda count: not fits(count))
