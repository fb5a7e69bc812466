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
    """Text against which others are compared; more can be added."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._parts: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        found = [word_runs(text) for text in texts]
        if found:
            self._parts.append(np.unique(np.concatenate(found)))

    def share(self, text: str) -> float:
        """The share of a text's runs of words that were seen, 0 to 1; of a text without one: 0."""
        runs = word_runs(text)
        if not len(runs):
            return 0.0
        seen = np.zeros(len(runs), bool)
        for part in self._parts:
            seen |= np.isin(runs, part, assume_unique=True)
        return float(seen.mean())

    def add(self, text: str) -> None:
        """Count a text among those seen."""
        self._parts.append(word_runs(text))
