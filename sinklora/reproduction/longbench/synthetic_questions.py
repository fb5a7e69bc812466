"""How one question of each synthetic data set is drawn from Python sources."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sinklora.reproduction.longbench.python_sources import Function, functions_of, plain_lines, window
from sinklora.train.fitting import longest

CLASSES = 6  # at most, of the classification

BEFORE = 20  # lines at least before the one to be completed

SNIPPET = 3  # lines

PASSAGE = 10  # lines

PASSAGES = 30  # at most, as LongBench's prompt says


@dataclass(frozen=True)
class Draft:
    """A record before it has a name."""

    input: str
    context: str
    answer: str
    all_classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Sources:
    """Documents (name, text) to draw from, and whether the prompt of a draft is within the budget."""

    documents: Sequence[tuple[str, str]]
    chance: random.Random
    fits: Callable[[Draft], bool]

    def draw(self) -> tuple[str, str]:
        """One document."""
        return self.chance.choice(self.documents)

    def asked(self, known: Sequence[str] = ()) -> tuple[str, Function] | None:
        """A text and a function in it that has a default worth asking for, of a name not yet `known`."""
        _, text = self.draw()
        candidates = [f for f in functions_of(text) if f.defaults and f.name not in known]
        return (text, self.chance.choice(candidates)) if candidates else None


def _next_line(sources: Sources) -> Draft | None:
    """As much of a file as fits before one of its lines; the line is the answer."""
    lines = sources.draw()[1].splitlines()
    # What scoring would skip as comment or markup cannot be an answer, and a bracket alone is none.
    places = [i for i in plain_lines(lines) if i >= BEFORE and len(lines[i].strip()) >= 10]
    if not places:
        return None
    place = sources.chance.choice(places)

    def draft(count: int) -> Draft:
        return Draft("", "\n".join(lines[place - count : place]) + "\n", lines[place])

    count = longest(place, lambda n: sources.fits(draft(n)))
    return draft(count) if count else None


def _default(sources: Sources) -> Draft | None:
    """A stretch of one file around a function, and a question for one of its defaults."""
    asked = sources.asked()
    if asked is None:
        return None
    text, function = asked
    parameter, value = sources.chance.choice(function.defaults)
    question = f"What is the default of parameter {parameter} of function {function.name}?"
    place = sources.chance.random()

    def draft(lines: int) -> Draft:
        return Draft(question, window(text, function, lines, place), value)

    extra = longest(len(text.splitlines()), lambda n: sources.fits(draft(n)))
    return draft(extra) if extra else None


def _two_defaults(sources: Sources) -> Draft | None:
    """Passages of several files; two of them have the functions whose defaults are asked for."""
    chosen: list[tuple[str, Function]] = []
    for _ in range(2):
        asked = sources.asked([function.name for _, function in chosen])
        if asked is None or asked[0] in [text for text, _ in chosen]:
            return None
        chosen.append(asked)
    pairs = [(function, *sources.chance.choice(function.defaults)) for _, function in chosen]
    asks = [f"of parameter {parameter} of function {function.name}" for function, parameter, _ in pairs]
    question = f"What are the defaults {asks[0]} and {asks[1]}?"
    answer = " ".join(value for _, _, value in pairs)
    texts = [window(text, function, PASSAGE, sources.chance.random()) for text, function in chosen]
    names = re.compile("|".join(rf"\b{re.escape(function.name)}\b" for function, _, _ in pairs))
    others = [p for p in _passages(sources, PASSAGES) if not names.search(p)]
    order = sources.chance.random()

    def draft(count: int) -> Draft:
        passages = [*texts, *others[:count]]
        random.Random(order).shuffle(passages)
        return Draft(question, _numbered("Passage", passages), answer)

    return draft(longest(len(others), lambda n: sources.fits(draft(n))))


def _first_docstring_line(sources: Sources) -> Draft | None:
    """A function without its docstring, whose first line is the summary."""
    candidates = [f for f in functions_of(sources.draw()[1]) if f.summary and f.body_lines >= SNIPPET]
    if not candidates:
        return None
    function = sources.chance.choice(candidates)
    return Draft("", function.source_without_docstring, function.summary)


def _module(sources: Sources) -> Draft | None:
    """Snippets with the folders that their files are in, as many as fit, and one to be told."""
    # Scoring knows one list of labels for a data set: the folders of most files, whatever is drawn.
    counts = Counter(_folder(name) for name, _ in sources.documents)
    labels = sorted(sorted(counts), key=lambda label: -counts[label])[:CLASSES]
    if len(labels) < 2:
        return None
    by_label = {
        label: [text for name, text in sources.documents if _folder(name) == label] for label in labels
    }
    answer = sources.chance.choice(labels)
    snippet = _snippet(sources, sources.chance.choice(by_label[answer]), SNIPPET)
    if snippet is None:
        return None
    shots = []
    for _ in range(PASSAGES // len(labels)):
        for label in sources.chance.sample(labels, len(labels)):
            shot = _snippet(sources, sources.chance.choice(by_label[label]), SNIPPET)
            if shot and shot != snippet:
                shots.append(f"Snippet:\n{shot}\nModule: {label}\n")

    def draft(count: int) -> Draft:
        return Draft(f"Snippet:\n{snippet}\nModule:", "".join(shots[:count]), answer, tuple(sorted(labels)))

    count = longest(len(shots), lambda n: sources.fits(draft(n)))
    return draft(count) if count >= len(labels) else None


def _which_passage(sources: Sources) -> Draft | None:
    """Numbered passages of different files, and a few lines of one of them."""
    passages = _passages(sources, PASSAGES)

    def context(count: int) -> str:
        return _numbered("Paragraph", passages[:count])

    longest_question = max(passages, key=len, default="")
    count = longest(len(passages), lambda n: sources.fits(Draft(longest_question, context(n), "")))
    if count < 2:
        return None
    number = sources.chance.randrange(count)
    snippet = _snippet(sources, passages[number], SNIPPET)
    if snippet is None or sum(snippet in passage for passage in passages[:count]) != 1:
        return None
    return Draft(snippet, context(count), f"Paragraph {number + 1}")


def _folder(name: str) -> str:
    return name.rpartition("/")[0].replace("/", ".")


def _passages(sources: Sources, count: int) -> list[str]:
    drawn = sources.chance.sample(sources.documents, min(count, len(sources.documents)))
    snippets = (_snippet(sources, text, PASSAGE) for _, text in drawn)
    return [passage for passage in snippets if passage]


def _snippet(sources: Sources, text: str, lines: int) -> str | None:
    """Successive lines of code, without blank lines, or None where the text has no more than that."""
    code = [line for line in text.splitlines() if line.strip()]
    if len(code) < lines:
        return None
    start = sources.chance.randrange(len(code) - lines + 1)
    return "\n".join(code[start : start + lines])


def _numbered(word: str, passages: Sequence[str]) -> str:
    return "\n\n".join(f"{word} {number}:\n{passage}" for number, passage in enumerate(passages, 1))


DRAFTERS: dict[str, Callable[[Sources], Draft | None]] = {
    "small_multifieldqa_en": _default,
    "small_hotpotqa": _two_defaults,
    "small_gov_report": _first_docstring_line,
    "small_trec": _module,
    "small_lcc": _next_line,
    "small_passage_retrieval_en": _which_passage,
}
