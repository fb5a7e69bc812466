"""Synthetic documents that plant a fact and ask for it later: pass keys, and values of names.

Wordings vary. A small share of them in pre-training teaches the embedded base model to retrieve, so that
retrieval can be measured.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from sinklora.records.checks import check_value
from sinklora.train.fitting import longest

FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. ",
    "Rain fell on the hills and the river rose slowly through the night. ",
    "The report was filed, read twice, and put back on the shelf. ",
    "Every morning the train left on time and nobody looked up. ",
    "A cold wind came from the north and the lamps went out one by one. ",
)

KEY_SENTENCES = (
    "The pass key is {key}. Remember it. {key} is the pass key. ",
    "The secret number is {key}. Do not forget it: {key}. ",
    "Note that the access code is {key}. The code {key} opens the door. ",
)

KEY_QUESTIONS = (
    "What is the pass key? The pass key is",
    "What is the secret number? The secret number is",
    "Which code opens the door? The access code is",
)

NAMES = (
    "alpha",
    "bravo",
    "delta",
    "echo",
    "golf",
    "hotel",
    "india",
    "kilo",
    "lima",
    "mike",
    "oscar",
    "papa",
    "romeo",
    "tango",
)

PAIR_SENTENCES = ("The value of {name} is {value}. ", "{name} = {value}\n", "Set {name} to {value}. ")

PAIR_QUESTIONS = (
    "What is the value of {name}? It is {value}. ",
    "print({name})  # {value}\n",
    "Now {name} is {value}. ",
)

CODE_FILLER = "def step(state):\n    return state\n\n"


@dataclass(frozen=True)
class NeedleDocument:
    """`prompt` ends with `question`, right before `answer`."""

    prompt: str
    answer: str
    question: str = ""

    @property
    def context(self) -> str:
        """The prompt without its question."""
        return self.prompt.removesuffix(self.question)

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.answer}."


def pass_key_document(
    rng: random.Random, fillers_before: int, fillers_after: int, wording: int | None = None
) -> NeedleDocument:
    """Filler, a five-digit key stated twice, filler, the question (paper 4.1.5).

    `wording` 0 is the paper's own; None draws one.
    """
    style = rng.randrange(len(KEY_SENTENCES)) if wording is None else wording
    filler = rng.choice(FILLER) if wording is None else FILLER[0]
    key = f"{rng.randrange(100_000):05d}"
    statement = KEY_SENTENCES[style].format(key=key)
    prompt = f"{filler * fillers_before}{statement}{filler * fillers_after}{KEY_QUESTIONS[style]}"
    return NeedleDocument(prompt, key, KEY_QUESTIONS[style])


def key_value_document(rng: random.Random, pairs: int) -> str:
    """Names bound to numbers, filler between, then all of them asked for in another order."""
    names = rng.sample(NAMES, min(pairs, len(NAMES)))
    values = {name: str(rng.randrange(10 ** rng.randint(1, 5))) for name in names}
    style = rng.randrange(len(PAIR_SENTENCES))
    filler = CODE_FILLER if style == 1 else rng.choice(FILLER)
    stated = "".join(
        PAIR_SENTENCES[style].format(name=n, value=values[n]) + filler * rng.randrange(3) for n in names
    )
    asked = "".join(
        PAIR_QUESTIONS[style].format(name=n, value=values[n]) for n in rng.sample(names, len(names))
    )
    return stated + asked


def fitted_pass_key(
    rng: random.Random,
    count_tokens: Callable[[str], int],
    tokens: int,
    depth: float,
    wording: int | None = None,
) -> NeedleDocument:
    """The longest pass-key document of at most `tokens` tokens, with the key at `depth`: 0 first, 1 last.

    Raises ValueError if even a document without filler is longer.
    """
    check_value("depth", depth, Annotated[float, Field(ge=0, le=1)])
    state = rng.getstate()

    def build(fillers: int) -> NeedleDocument:
        rng.setstate(state)  # the same key and wording at every trial length
        before = round(fillers * depth)
        return pass_key_document(rng, before, fillers - before, wording)

    def fits(fillers: int) -> bool:
        return count_tokens(build(fillers).text) <= tokens

    if not fits(0):
        raise ValueError(f"tokens={tokens}: too short for a pass-key document")
    most = 1
    while fits(most):  # the search reads no text much longer than what fits
        most *= 2
    return build(longest(most, fits))
