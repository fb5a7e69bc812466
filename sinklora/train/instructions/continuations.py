"""Texts that are to be continued: the beginning as instruction, what comes next as output."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

INSTRUCTION = "Continue this text where it ends.\n\n{text}"

LEAST_WORDS, MOST_WORDS = 60, 250  # of a continuation


@dataclass(frozen=True)
class Cut:
    """A text in two: what is given, and what comes next in it."""

    given: str
    next: str


def cut_words(text: str, most_given: int, most_next: int) -> Cut | None:
    """The first `most_given` words and the next `most_next`, with the blanks and lines between them as they
    are; of a shorter text the last quarter at most is what comes next. None where that is too short.
    """
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    given_count = min(most_given, len(ends) - min(most_next, len(ends) // 4))
    following = ends[given_count : given_count + most_next]
    if given_count < 1 or len(following) < LEAST_WORDS:
        return None
    middle = ends[given_count - 1]
    return Cut(text[:middle].strip(), text[middle : following[-1]].strip())


def cut_paragraphs(text: str, characters: int) -> Iterator[Cut]:
    """A text in pieces of about so many characters, each with the paragraphs that come next, up to
    MOST_WORDS words; no paragraph stands in two pieces.
    """
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]
    place = 0
    while place < len(paragraphs):
        piece: list[str] = []
        while place < len(paragraphs) and sum(map(len, piece)) < characters:
            piece.append(paragraphs[place])
            place += 1
        following: list[str] = []
        while place < len(paragraphs) and _words([*following, paragraphs[place]]) <= MOST_WORDS:
            following.append(paragraphs[place])
            place += 1
        if not following:  # the next paragraph alone is too long: it begins the next piece
            if place == len(paragraphs):
                return
            continue
        if _words(following) >= LEAST_WORDS:
            yield Cut("\n\n".join(piece), "\n\n".join(following))


def _words(paragraphs: list[str]) -> int:
    return sum(len(paragraph.split()) for paragraph in paragraphs)
