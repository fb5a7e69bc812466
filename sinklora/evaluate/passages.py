"""Passages: equally long pieces of documents, spread evenly over each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sinklora.records.checks import check_counts


class Passage(NamedTuple):
    """A piece of a document: the document's index, the first token after the BOS in it, and token ids."""

    document: int
    start: int
    ids: np.ndarray


def cut_passages(documents: Sequence[np.ndarray], tokens: int, count: int) -> list[Passage]:
    """`count` passages of `tokens` tokens, each the document's BOS and what follows at its place.

    Documents give one each in turn, as long as they have room, until there are enough; a document's passages
    do not overlap and lie at the middles of equal parts of it, so that title pages and last words are left
    out. ValueError where the documents do not hold that many.
    """
    check_counts(2, tokens=tokens)
    check_counts(1, count=count)
    body = tokens - 1  # beside the BOS
    rooms = [(len(document) - 1) // body for document in documents]
    if sum(rooms) < count:
        raise ValueError(
            f"count={count}, tokens={tokens}: {len(documents)} documents have room for {sum(rooms)} "
            "passages; take fewer or shorter ones, or more text"
        )
    turns = [(turn, index) for index, room in enumerate(rooms) for turn in range(room)]
    taken = Counter(index for _, index in sorted(turns)[:count])
    return [
        passage for index in sorted(taken) for passage in _cut(index, documents[index], body, taken[index])
    ]


def _cut(index: int, document: np.ndarray, body: int, pieces: int) -> Iterator[Passage]:
    spare = len(document) - 1 - pieces * body
    for piece in range(pieces):
        start = 1 + piece * body + (2 * piece + 1) * spare // (2 * pieces)
        yield Passage(index, start, np.concatenate([document[:1], document[start : start + body]]))
