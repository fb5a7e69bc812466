"""Pass keys in text that does not repeat: passages of books, each another one, with the key in between.

The paper's filler is five sentences repeated, which a cache that drops repetitions finds easy to forget.
"""

import random
import re
from collections.abc import Callable, Sequence

from sinklora.records.checks import check_counts
from sinklora.train.fitting import longest
from sinklora.train.retrieval_documents import KEY_QUESTIONS, KEY_SENTENCES, NeedleDocument
from sinklora.train.sources import Document

SENTENCE = re.compile(r".+?(?:[.!?][\"'”’)]*\s+|\Z)", re.DOTALL)

CHARACTERS = 10  # more than the tokens of prose have on average


def keys_in_prose(
    documents: Sequence[Document], count: Callable[[str], int], *, tokens: int, trials: int, seed: int
) -> list[NeedleDocument]:
    """`trials` passages of at most `tokens` tokens with the key in the paper's words, its depth swept from
    first to last.

    The passages are of each document in turn, from a place drawn from `seed`; where a document ends, the next
    goes on. Raises ValueError where all of them together are too short.
    """
    check_counts(least=2, trials=trials)
    check_counts(tokens=tokens)
    rng = random.Random(f"keys in prose/{seed}/{tokens}")
    made = []
    for trial in range(trials):
        passage = _passage(rng, documents, trial % len(documents), CHARACTERS * tokens)
        made.append(_planted(rng, SENTENCE.findall(passage), count, tokens, trial / (trials - 1)))
    return made


def _passage(rng: random.Random, documents: Sequence[Document], first: int, characters: int) -> str:
    """So many characters from a place in the first document on, from its next sentence."""
    start = rng.randrange(max(1, len(documents[first].text) - characters))
    text, place = documents[first].text[start:], first
    while len(text) < characters:
        place = (place + 1) % len(documents)
        if place == first:
            raise ValueError(
                f"documents: all {len(documents)} together have fewer than the {characters} characters that "
                "a passage is chosen from; give more text or fewer tokens"
            )
        text += "\n\n" + documents[place].text
    sentences = SENTENCE.findall(text[:characters])
    return "".join(sentences[1:] or sentences)


def _planted(
    rng: random.Random, sentences: Sequence[str], count: Callable[[str], int], tokens: int, depth: float
) -> NeedleDocument:
    key = f"{rng.randrange(100_000):05d}"
    statement, question = KEY_SENTENCES[0].format(key=key), KEY_QUESTIONS[0]

    def build(number: int) -> NeedleDocument:
        before = round(number * depth)
        parts = [*sentences[:before], statement, *sentences[before:number], question]
        return NeedleDocument("".join(parts), key, question)

    if count(build(0).text) > tokens:
        raise ValueError(f"tokens={tokens}: too short for a pass-key document")
    return build(longest(len(sentences), lambda number: count(build(number).text) <= tokens))
