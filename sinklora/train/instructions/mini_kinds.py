"""The four kinds of examples of the small set, made of the pages and books of one half."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sinklora.train.instructions.continuations import INSTRUCTION, Cut, cut_paragraphs
from sinklora.train.instructions.documentation import NOT_STATED, Page, described_package, licence_of
from sinklora.train.instructions.examples import CONTINUATION, LONG_QUESTION, QUESTION, SUMMARY, Example
from sinklora.train.instructions.page_questions import (
    Asked,
    ask,
    ask_for_summary,
    ask_of_several,
    questions_of,
    shown,
)

LEAST_CHARACTERS, MOST_CHARACTERS = 7_000, 20_000  # of a text: some 2,000 to 8,000 tokens

PER_DOCUMENT, PER_ANSWER = 4, 3  # examples of a kind at most

SUMMARY_WORDS = range(5, 41)

BOOKS_SHARE = 0.5  # of the continuations at most

SEVERAL = (3, 4, 5)  # files

TRIES = 60  # for each question over several files

ASKED = "Read this documentation and answer the question below it.\n\n{context}\n\nQuestion: {question}"


@dataclass(frozen=True)
class Book:
    """A text that is not documentation, and its licence in a few words."""

    name: str
    text: str
    sha256: str
    licence: str = NOT_STATED


@dataclass(frozen=True)
class Half:
    """What one half of the set, named `name`, is made of."""

    name: str
    seed: int
    pages: tuple[Page, ...]
    books: tuple[Book, ...] = ()
    hashes: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hashes", {page.name: page.file_sha256 for page in self.pages})

    @property
    def long_pages(self) -> list[Page]:
        """Those with enough text for a question of their own."""
        return [page for page in self.pages if page.characters >= LEAST_CHARACTERS]

    def rng(self, *what: object) -> random.Random:
        """Chance that depends on the seed, the half, and what it is for."""
        return random.Random("/".join(map(str, (self.seed, self.name, *what))))


def asked_of(half: Half, kind: str, count: int) -> list[Asked]:
    """Questions of a kind: at most PER_DOCUMENT of a document and PER_ANSWER with one answer, none about a
    text that one entry alone makes too long.

    Raises ValueError where there are not as many.
    """
    documents, answers, chosen = Counter[str](), Counter[str](), list[Asked]()
    for asked in MAKERS[kind](half, count):
        answer = asked.answer.lower()
        fits = len(asked.context) <= MOST_CHARACTERS
        if fits and documents[asked.document] < PER_DOCUMENT and answers[answer] < PER_ANSWER:
            documents[asked.document] += 1
            answers[answer] += 1
            chosen.append(asked)
        if len(chosen) == count:
            return chosen
    raise ValueError(_too_few(half, kind, count, len(chosen)))


def _questions(half: Half, _: int) -> Iterator[Asked]:
    for page, place in _entries(half, QUESTION):
        rng = half.rng(QUESTION, page.name, place)
        if forms := list(questions_of(page.entries[place])):
            asked = ask(page, place, rng.choice(forms), _length(rng), rng)
            if asked.answer in asked.context:
                yield asked


def _summaries(half: Half, _: int) -> Iterator[Asked]:
    for page, place in _entries(half, SUMMARY):
        entry, rng = page.entries[place], half.rng(SUMMARY, page.name, place)
        if len(entry.summary.split()) in SUMMARY_WORDS and len(entry.without_summary) >= len(entry.summary):
            yield ask_for_summary(page, place, _length(rng), rng)


def _several(half: Half, count: int) -> Iterator[Asked]:
    by_package: dict[str, list[Page]] = {}
    for page in half.pages:
        by_package.setdefault(page.package, []).append(page)
    enough = [pages for _, pages in sorted(by_package.items()) if len(pages) >= SEVERAL[-1]]
    for number in range(TRIES * count if enough else 0):
        rng = half.rng(LONG_QUESTION, number)
        chosen = rng.sample(enough[number % len(enough)], rng.choice(SEVERAL))
        asked = ask_of_several(chosen, _length(rng), rng)
        if asked and len(asked.context) >= LEAST_CHARACTERS / 2:
            yield asked


MAKERS: Mapping[str, Callable[[Half, int], Iterable[Asked]]] = MappingProxyType(
    {QUESTION: _questions, SUMMARY: _summaries, LONG_QUESTION: _several}
)


def continuations(half: Half, count: int) -> list[Example]:
    """Texts to be continued: of books up to BOOKS_SHARE where there are any, the others of documentation.

    Raises ValueError where there are not as many.
    """
    books = [
        _continuation(cut, f"{book.name}#{number}", book.name, book.name, book.licence, book.sha256)
        for book in half.books
        for number, cut in enumerate(cut_paragraphs(book.text, _length(half.rng("book", book.name))))
    ]
    half.rng("books").shuffle(books)
    examples = books[: round(BOOKS_SHARE * count)]
    pages = half.long_pages
    half.rng(CONTINUATION).shuffle(pages)
    for page in pages:
        if len(examples) == count:
            break
        text = shown(page, page.entries)
        length = min(_length(half.rng(CONTINUATION, page.name)), len(text) * 3 // 4)
        cuts = list(cut_paragraphs(text, length))
        examples += [
            _continuation(
                cut,
                f"{page.name}#{number}",
                page.name,
                described_package(page.package),
                licence_of(page.package),
                page.file_sha256,
            )
            for number, cut in enumerate(cuts[: min(PER_DOCUMENT, count - len(examples))])
        ]
    if len(examples) < count:
        raise ValueError(_too_few(half, CONTINUATION, count, len(examples)))
    return examples


def _continuation(cut: Cut, name: str, document: str, source: str, licence: str, sha256: str) -> Example:
    instruction = INSTRUCTION.format(text=cut.given)
    return Example(instruction, cut.next, CONTINUATION, source, name, document, licence, document, sha256)


def as_example(half: Half, kind: str, asked: Asked) -> Example:
    """A question with its text as an example."""
    hashes = [half.hashes[name] for name in asked.document.split(", ")]
    return Example(
        ASKED.format(context=asked.context, question=asked.question),
        asked.answer,
        kind,
        described_package(asked.package),
        f"{asked.document}#{asked.id}",
        asked.document,
        licence_of(asked.package),
        asked.document,
        ", ".join(hashes),
    )


def _entries(half: Half, kind: str) -> list[tuple[Page, int]]:
    """Entries of the long pages in an order of chance."""
    entries = [(page, place) for page in half.long_pages for place in range(len(page.entries))]
    half.rng("order", kind).shuffle(entries)
    return entries


def _length(rng: random.Random) -> int:
    return rng.randint(LEAST_CHARACTERS, MOST_CHARACTERS)


def _too_few(half: Half, kind: str, count: int, available: int) -> str:
    return (
        f"{half.name}={count} examples of the kind {kind!r} are wanted and {available} are there; take "
        "fewer, or more packages or books"
    )
