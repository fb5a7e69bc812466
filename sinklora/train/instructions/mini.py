"""A small set in the mix of LongAlpaca-plus from what is on this machine: documentation, and books.

Questions, continuations, summaries and questions over several files, from the documentation of installed
packages; some of the continuations from books where there are any. Documents are split before anything is
made of them: none is in both halves, and what documentation says twice is read once.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sinklora.records.checks import Count, Distinct, NotNegative, check_fields
from sinklora.records.files import file_hash, name_in, visible_files
from sinklora.train.instructions.documentation import NOT_STATED, read_pages
from sinklora.train.instructions.examples import (
    CONTINUATION,
    KINDS,
    LONG_QUESTION,
    QUESTION,
    SUMMARY,
    Example,
    mixed_counts,
)
from sinklora.train.instructions.mini_kinds import Book, Half, as_example, asked_of, continuations
from sinklora.train.instructions.page_questions import Asked

PACKAGES = ("networkx", "numpy", "scipy", "pandas", "matplotlib")  # documented in the form of numpydoc

HELD_OUT_PERCENT = 25  # of the documents


@dataclass(frozen=True)
class MiniSpec:
    """What the small set is made of: `train` and `test` examples, `books` a folder of texts or one text.

    `books_licence`: what the set says of the licence of these texts.
    Raises TypeError or ValueError naming the field, FileNotFoundError for books that are not there.
    """

    train: Count = 500
    test: Count = 240
    packages: Distinct[str] = PACKAGES
    books: str = ""
    seed: NotNegative = 0
    books_licence: str = NOT_STATED

    def __post_init__(self) -> None:
        check_fields(self)
        for total in (self.train, self.test):
            mixed_counts(total)
        if self.books and not Path(self.books).exists():
            raise FileNotFoundError(f"books={self.books!r}: no such folder or text; give one, or none")


@dataclass(frozen=True)
class MiniSet:
    """The examples of both halves; `questions`: what those of the test half ask about documents; `repeated`:
    entries of the documentation that were left out, because they had been said before.
    """

    train: tuple[Example, ...]
    test: tuple[Example, ...]
    questions: tuple[Asked, ...]
    repeated: int


def is_held_out(document: str) -> bool:
    """Whether a document of this name belongs to the test half."""
    digest = hashlib.sha256(f"held out: {document}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def make_mini(spec: MiniSpec) -> MiniSet:
    """The small set of a spec; the same packages and books give the same set.

    Raises ValueError where they do not hold as many examples of a kind.
    """
    books = read_books(spec.books, spec.books_licence)
    pages, repeated = read_pages(spec.packages)
    halves = [
        Half(
            name,
            spec.seed,
            tuple(page for page in pages if is_held_out(page.name) == held_out),
            tuple(book for book in books if is_held_out(book.name) == held_out),
        )
        for name, held_out in (("train", False), ("test", True))
    ]
    (train, _), (test, questions) = (
        _examples(half, total) for half, total in zip(halves, (spec.train, spec.test), strict=True)
    )
    return MiniSet(tuple(train), tuple(test), tuple(questions), repeated)


def _examples(half: Half, total: int) -> tuple[list[Example], list[Asked]]:
    """All examples of a half, kind by kind, and the questions about documents among them."""
    wanted = {KINDS[source]: count for source, count in mixed_counts(total).items()}
    asked = {kind: asked_of(half, kind, wanted[kind]) for kind in (QUESTION, SUMMARY, LONG_QUESTION)}
    made = {kind: [as_example(half, kind, one) for one in questions] for kind, questions in asked.items()}
    made[CONTINUATION] = continuations(half, wanted[CONTINUATION])
    return [one for kind in wanted for one in made[kind]], [*asked[QUESTION], *asked[LONG_QUESTION]]


def read_books(place: str, licence: str = NOT_STATED) -> Sequence[Book]:
    """The texts of a folder (*.txt), or the one text, of a licence; of no place, none.

    Raises ValueError for what is not UTF-8 and for a folder without a text.
    """
    if not place:
        return ()
    path = Path(place)
    files = visible_files(path, "*.txt") if path.is_dir() else [path]
    if not files:
        raise ValueError(f"books={place!r}: holds no text (*.txt)")
    return [Book(name_in(file.parent, file), _text(file), file_hash(file), licence) for file in files]


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"books: {file} is not UTF-8 text ({error}); save it as UTF-8") from error
