"""Searches for the longest text that fits."""

from collections.abc import Callable


def longest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 0 to `most` that fits, where every smaller one does; 0 if none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
