"""Passages: equally long pieces of documents, spread evenly over each, as many of each document."""

from collections.abc import Sequence
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

    Of each document that is long enough equally many are taken (of the first ones one more where that does
    not come out even), at the middles of equal parts, so that title pages and last words are left out; with
    more documents than `count` one of each of the first ones. Passages of a document do not overlap.
    ValueError where the documents do not hold that many.
    """
    check_counts(2, tokens=tokens)
    check_counts(1, count=count)
    body = tokens - 1  # beside the BOS
    long = [index for index, document in enumerate(documents) if len(document) >= tokens][:count]
    passages = []
    for order, index in enumerate(long):
        document, pieces = documents[index], count // len(long) + (order < count % len(long))
        room = len(document) - 1 - pieces * body
        if room < 0:
            raise ValueError(
                f"count={count}, tokens={tokens}: document {index} has {len(document)} tokens, too few for "
                f"its {pieces} passages; take fewer or shorter ones, or more or longer documents"
            )
        for piece in range(pieces):
            start = 1 + piece * body + (2 * piece + 1) * room // (2 * pieces)
            ids = np.concatenate([document[:1], document[start : start + body]])
            passages.append(Passage(index, start, ids))
    if not passages:
        raise ValueError(f"tokens={tokens}: none of {len(documents)} documents is as long; take longer ones")
    return passages
