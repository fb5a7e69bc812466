"""Near-duplicates of training text: documents of which half has been seen before, word for word.

Measured in runs of 13 words, as language models' test sets usually are (Brown et al. 2020, arXiv 2005.14165,
appendix C); case and punctuation do not count.
"""

import re
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

WIDTH = 13  # words of a run

SHARE = 0.5  # of a document's runs, from which on it is a near-duplicate

WORD = re.compile(r"\w+")


def word_runs(text: str) -> NDArray[np.uint64]:
    """A 64-bit hash of every run of 13 words, each once, in ascending order; of a shorter text: none."""
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in WORD.findall(text.lower())), dtype=np.uint64)
    if len(hashes) < WIDTH:
        return np.empty(0, np.uint64)
    runs = np.zeros(len(hashes) - WIDTH + 1, np.uint64)
    for place in range(WIDTH):  # a polynomial in an odd number, modulo 2^64
        runs = runs * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + len(runs)]
    return np.unique(runs)


class SeenText:
    """Text against which others are compared; more can be added.

    Its parts are kept sorted, each more than twice as long as the next: a comparison searches a few of them,
    however many texts were added.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        text_runs = [word_runs(text) for text in texts]
        self._parts: list[NDArray[np.uint64]] = [np.unique(np.concatenate(text_runs))] if text_runs else []

    def share(self, text: str) -> float:
        """The share of a text's runs of words that were seen, 0 to 1; of a text without one: 0."""
        return self._share(word_runs(text))

    def add(self, text: str) -> float:
        """Count a text among those seen; returns the share of it that had been seen before."""
        new = word_runs(text)
        share = self._share(new)
        while self._parts and len(self._parts[-1]) <= 2 * len(new):
            new = _merged(self._parts.pop(), new)
        self._parts.append(new)
        return share

    def _share(self, runs: NDArray[np.uint64]) -> float:
        if not len(runs):
            return 0.0
        seen = np.zeros(len(runs), bool)
        for part in self._parts:
            seen |= _among(part, runs)
        return float(seen.mean())


def _merged(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Two sorted parts as one, each number once."""
    both = np.concatenate([left, right])
    both.sort(kind="stable")  # which finds the two sorted halves
    first = np.ones(len(both), bool)
    first[1:] = both[1:] != both[:-1]
    return both[first]


def _among(part: NDArray[np.uint64], runs: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of `runs` stand in a part, which is sorted."""
    if not len(part):
        return np.zeros(len(runs), bool)
    places = np.minimum(np.searchsorted(part, runs), len(part) - 1)
    present: NDArray[np.bool_] = part[places] == runs
    return present
