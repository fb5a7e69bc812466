"""Sliding windows over documents: which tokens a model sees at once, and which of them it is scored on.

A window holds `context` tokens. A document's first window scores all tokens that it can predict (all but its
first); each later one moves on by `stride` and scores only its last `stride` tokens, so that these see at
least `context - stride` tokens before them. The last window ends where the document does: it is as long as
the others and scores what is left. LongLoRA (arXiv 2309.12307) uses stride 256.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice


@dataclass(frozen=True)
class Window:
    """Tokens [start, stop) of a document, of which [first, stop) are scored."""

    document: int
    start: int
    first: int
    stop: int

    @property
    def length(self) -> int:
        """Tokens in the window."""
        return self.stop - self.start


def windows_of(document: int, length: int, context: int, stride: int) -> Iterator[Window]:
    """The windows that predict tokens 1 to length - 1 of a document once each, all of `context` tokens.

    A document shorter than `context` is one window.
    """
    stop = min(context, length)
    yield Window(document, 0, 1, stop)
    while stop < length:
        first, stop = stop, min(stop + stride, length)
        yield Window(document, stop - context, first, stop)


def batches(
    chosen: Sequence[int], lengths: Sequence[int], context: int, stride: int, batch_size: int
) -> Iterator[list[Window]]:
    """Windows of equal length, at most `batch_size` of them, the longest first: no padding is ever needed."""
    longest_first = sorted(chosen, key=lambda index: -min(lengths[index], context))
    windows = (w for index in longest_first for w in windows_of(index, lengths[index], context, stride))
    for _, equal in groupby(windows, key=lambda window: window.length):
        while batch := list(islice(equal, batch_size)):
            yield batch
