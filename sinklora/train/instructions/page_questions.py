"""Questions about pages of documentation, whose answers stand in the text that is given with them."""

import operator
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sinklora.train.instructions.documentation import Entry, Page, Parameter

GUESSED = frozenset(["None", "True", "False", "0", "1"])  # defaults that are right without the text

COMMON = frozenset(["int", "str", "bool", "float", "object", "array_like", "string"])  # types, likewise

LEAST_WORDS, MOST_WORDS = 4, 40  # of an answer that is a sentence


@dataclass(frozen=True)
class Asked:
    """A question about a text: `document` names what the text is of, `id` what in it is asked for."""

    context: str
    question: str
    answer: str
    id: str
    document: str
    package: str


def shown(page: Page, entries: Sequence[Entry]) -> str:
    """Entries of a page as they are given to a reader."""
    parts = [f"File: {page.name}", *(f"## {entry.name}\n\n{entry.text}" for entry in entries)]
    return "\n\n".join(parts)


def around(page: Page, place: int, characters: int, rng: random.Random) -> list[Entry]:
    """Entries in a row, that at `place` among them, as many as have `characters` together; how many stand
    before it is drawn.
    """
    first = last = place
    left = characters - len(page.entries[place].text)
    while True:
        before = len(page.entries[first - 1].text) if first else left + 1
        behind = len(page.entries[last + 1].text) if last + 1 < len(page.entries) else left + 1
        if min(before, behind) > left:
            return list(page.entries[first : last + 1])
        if behind > left or (before <= left and rng.random() < 0.5):
            first, left = first - 1, left - before
        else:
            last, left = last + 1, left - behind


def questions_of(entry: Entry) -> Iterator[tuple[str, str, str]]:
    """What can be asked about an entry: what is asked for, the question, and the answer."""
    for parameter in entry.parameters():
        if parameter.name:
            yield from _of_parameter(entry, parameter)
    if _is_sentence(entry.returned()):
        question = f"What does `{entry.name}` return, in the words of its documentation?"
        yield "return", question, entry.returned()


def _of_parameter(entry: Entry, parameter: Parameter) -> Iterator[tuple[str, str, str]]:
    name = f"`{parameter.name}` of `{entry.name}`"
    if parameter.default and parameter.default not in GUESSED:
        yield f"{parameter.name}.default", f"What is the default of the parameter {name}?", parameter.default
    elif not parameter.default and parameter.type.removesuffix(", optional") not in COMMON:
        question = f"Which type or values does the documentation state for the parameter {name}?"
        yield f"{parameter.name}.type", question, parameter.type
    if _is_sentence(parameter.meaning):
        question = f"What does the documentation say first about the parameter {name}?"
        yield f"{parameter.name}.meaning", question, parameter.meaning


def _is_sentence(text: str) -> bool:
    return LEAST_WORDS <= len(text.split()) <= MOST_WORDS


def ask(page: Page, place: int, form: tuple[str, str, str], characters: int, rng: random.Random) -> Asked:
    """A question of `questions_of` about the entry at `place`, with text of the page around it."""
    what, question, answer = form
    text = shown(page, around(page, place, characters, rng))
    return Asked(text, question, answer, f"{page.entries[place].name}.{what}", page.name, page.package)


def ask_for_summary(page: Page, place: int, characters: int, rng: random.Random) -> Asked:
    """The summary of the entry at `place`, asked for where it is taken out of the text."""
    entry = page.entries[place]
    bare = Entry(entry.name, entry.without_summary)
    chosen = [bare if e is entry else e for e in around(page, place, characters, rng)]
    text = shown(page, chosen).replace(entry.summary, "")
    question = (
        f"The first sentence of the documentation of `{entry.name}` is missing above. Write it: what "
        f"`{entry.name}` is or does."
    )
    return Asked(text, question, entry.summary, f"{entry.name}.summary", page.name, page.package)


def ask_of_several(pages: Sequence[Page], characters: int, rng: random.Random) -> Asked | None:
    """A question for which several pages have to be looked through; None where they allow none.

    Which of the files documents a name, or what two of them state for a parameter that both have.
    """
    share = characters // len(pages)
    chosen = [around(page, rng.randrange(len(page.entries)), share, rng) for page in pages]
    text = "\n\n".join(shown(page, entries) for page, entries in zip(pages, chosen, strict=True))
    parts = _which_file(pages, chosen, rng) if rng.random() < 0.5 else _both_types(chosen, rng)
    if parts is None:
        return None
    what, question, answer = parts
    return Asked(text, question, answer, what, ", ".join(page.name for page in pages), pages[0].package)


def _which_file(
    pages: Sequence[Page], chosen: Sequence[Sequence[Entry]], rng: random.Random
) -> tuple[str, str, str] | None:
    place = rng.randrange(len(pages))
    elsewhere = {entry.name for i, entries in enumerate(chosen) if i != place for entry in entries}
    names = [entry.name for entry in chosen[place] if entry.name not in elsewhere]
    if not names:
        return None
    name = rng.choice(names)
    return f"{name}.file", f"In which of the files above is `{name}` documented?", pages[place].name


def _both_types(chosen: Sequence[Sequence[Entry]], rng: random.Random) -> tuple[str, str, str] | None:
    typed = [
        {p.name: (entry.name, p.type) for entry in entries for p in entry.parameters() if p.name}
        for entries in chosen
    ]
    pairs = [
        (name, *typed[i][name], *typed[j][name])
        for i in range(len(typed))
        for j in range(i + 1, len(typed))
        for name in typed[i]
        if name in typed[j] and all(map(operator.ne, typed[i][name], typed[j][name]))
    ]
    if not pairs:
        return None
    name, one, of_one, other, of_other = rng.choice(pairs)
    question = (
        f"Both `{one}` and `{other}` have a parameter `{name}`. Which type or values does the documentation "
        "state for it in each of the two?"
    )
    return f"{one}+{other}.{name}", question, f"`{one}`: {of_one}; `{other}`: {of_other}"
