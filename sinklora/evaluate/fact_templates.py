"""The facts that are planted in text: sentences, their questions in other words, and the possible answers."""

import random
from dataclasses import dataclass

DIGITS = 5


@dataclass(frozen=True)
class FactTemplate:
    """A sentence with a place for its answer, the question in other words, and the beginning of the reply.

    `answers`: what the answer is one of; none: a number of five digits.
    """

    statement: str
    question: str
    reply: str
    answers: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """The share of right answers of who draws among the possible ones."""
        return 1 / len(self.answers) if self.answers else 1 / (9 * 10 ** (DIGITS - 1))

    def draw(self, rng: random.Random) -> str:
        """One of the possible answers."""
        return (
            rng.choice(self.answers) if self.answers else str(rng.randrange(10 ** (DIGITS - 1), 10**DIGITS))
        )


NUMBER_FACTS = (
    FactTemplate(
        "The ticket that she kept in her purse had the number {answer} printed on it.",
        "What was the number of the ticket in her purse?",
        "The ticket's number was",
    ),
    FactTemplate(
        "The engineers counted {answer} bricks in the old bridge before it was taken down.",
        "How many bricks did the old bridge have?",
        "The number of bricks in the bridge was",
    ),
    FactTemplate(
        "The monastery bought its last manuscript for {answer} ducats.",
        "How much money did the monks pay for their last manuscript?",
        "For the manuscript they paid",
    ),
    FactTemplate(
        "The crate that arrived from the harbour weighed {answer} pounds.",
        "What was the weight of the crate from the harbour?",
        "The crate had a weight in pounds of",
    ),
    FactTemplate(
        "At the census the valley was found to have {answer} inhabitants.",
        "How many people lived in the valley?",
        "The number of people in the valley was",
    ),
    FactTemplate(
        "The telegram from the ministry was filed under {answer} in the archive.",
        "Under which number is the ministry's telegram kept?",
        "The number of the telegram is",
    ),
)

WORD_FACTS = (
    FactTemplate(
        "The innkeeper had a parrot by the name of {answer}.",
        "What did the innkeeper call his parrot?",
        "The name of the parrot was",
        ("Harold", "Miriam", "Oliver", "Martha", "Victor", "Agnes", "Felix", "Clara", "Hugo", "Edith"),
    ),
    FactTemplate(
        "The treaty was signed at last in {answer}, after eleven days of talks.",
        "In which city did they sign the treaty?",
        "The city where they signed the treaty was",
        ("Lisbon", "Geneva", "Oslo", "Dublin", "Vienna", "Athens", "Madrid", "Warsaw", "Prague", "Cairo"),
    ),
    FactTemplate(
        "As a boy the surgeon had learned to play the {answer}.",
        "Which instrument did the surgeon know since his childhood?",
        "The surgeon could play the",
        ("trumpet", "violin", "piano", "flute", "guitar", "harp", "cello", "organ", "drums", "banjo"),
    ),
    FactTemplate(
        "The door of the observatory had been painted {answer} in the spring.",
        "What colour did the observatory's door have?",
        "The door was painted",
        ("green", "violet", "yellow", "orange", "purple", "brown", "white", "black", "blue", "grey"),
    ),
    FactTemplate(
        "Grandmother's secret was to put a little {answer} into the soup.",
        "Which secret ingredient did the grandmother add to her soup?",
        "Into the soup she put a little",
        ("ginger", "honey", "garlic", "lemon", "mustard", "pepper", "vinegar", "butter", "cinnamon", "mint"),
    ),
    FactTemplate(
        "Of all the animals on the farm only the {answer} came through the flood.",
        "Which animal of the farm survived the flood?",
        "The animal that survived was the",
        ("horse", "goat", "sheep", "donkey", "goose", "rabbit", "cat", "turkey", "cow", "pig"),
    ),
)
