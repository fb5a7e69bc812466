"""The facts that are planted in text: sentences, their questions in other words, and the possible answers.

Those of `TEMPLATES` have nothing in common; those of `ALIKE` differ by a name and the answer alone.
Every answer is several tokens long: what a cache has dropped cannot be guessed from the question, nor from
an answer's first token.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerKind:
    """What an answer is one of: `draw` gives one of `count` possible ones, each as likely."""

    name: str
    count: int
    draw: Callable[[random.Random], str]


NAMES = (
    "Ashworth",
    "Brandlhofer",
    "Callowell",
    "Dunmorrow",
    "Ellisberg",
    "Farrowgate",
    "Greshamson",
    "Hollisworth",
    "Ivarsen",
    "Jessopdale",
    "Kendrickson",
    "Lockwoodham",
    "Marlowitz",
    "Norwoodley",
    "Osgoodby",
    "Pemberton",
    "Quimbyford",
    "Radcliffe",
    "Stanhopeton",
    "Thackersley",
    "Umberwood",
    "Vandermolen",
    "Wexcombe",
    "Yarborough",
)

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

DAYS = range(1, 29)


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10_000, 100_000))


def _name(rng: random.Random) -> str:
    return rng.choice(NAMES)


def _date(rng: random.Random) -> str:
    return f"{rng.choice(MONTHS)} {rng.choice(DAYS)}"


NUMBER = AnswerKind("number", 90_000, _number)  # of five digits

NAME = AnswerKind("name", len(NAMES), _name)

DATE = AnswerKind("date", len(MONTHS) * len(DAYS), _date)


@dataclass(frozen=True)
class FactTemplate:
    """A sentence with a place for its answer, the question in other words, and the beginning of the reply."""

    kind: AnswerKind
    statement: str
    question: str
    reply: str

    @property
    def chance(self) -> float:
        """The share of right answers of who draws among the possible ones."""
        return 1 / self.kind.count

    def draw(self, rng: random.Random) -> str:
        """One of the possible answers."""
        return self.kind.draw(rng)


TEMPLATES = (
    FactTemplate(
        NUMBER,
        "The ticket that she kept in her purse had the number {answer} printed on it.",
        "What was the number of the ticket in her purse?",
        "The ticket's number was",
    ),
    FactTemplate(
        NUMBER,
        "The engineers counted {answer} bricks in the old bridge before it was taken down.",
        "How many bricks did the old bridge have?",
        "The number of bricks in the bridge was",
    ),
    FactTemplate(
        NUMBER,
        "The monastery bought its last manuscript for {answer} ducats.",
        "How much money did the monks pay for their last manuscript?",
        "For the manuscript they paid",
    ),
    FactTemplate(
        NUMBER,
        "The crate that arrived from the harbour weighed {answer} pounds.",
        "What was the weight of the crate from the harbour?",
        "The crate had a weight in pounds of",
    ),
    FactTemplate(
        NUMBER,
        "At the census the valley was found to have {answer} inhabitants.",
        "How many people lived in the valley?",
        "The number of people in the valley was",
    ),
    FactTemplate(
        NUMBER,
        "The telegram from the ministry was filed under {answer} in the archive.",
        "Under which number is the ministry's telegram kept?",
        "The number of the telegram is",
    ),
    FactTemplate(
        NAME,
        "The lighthouse at the northern cape was built by a certain Mr. {answer}.",
        "Who was the builder of the northern lighthouse?",
        "The northern lighthouse's builder was Mr.",
    ),
    FactTemplate(
        NAME,
        "The violin was later sold to a Mrs. {answer}, who never played it.",
        "Which person became the owner of the violin?",
        "The violin's owner became Mrs.",
    ),
    FactTemplate(
        NAME,
        "In the chess tournament at the spa the prize went to a Dr. {answer}.",
        "Who won at chess in the spa?",
        "The winner at chess was Dr.",
    ),
    FactTemplate(
        NAME,
        "The comet of that winter was first seen by a Captain {answer} through a borrowed telescope.",
        "Which observer discovered the winter's comet?",
        "The winter's comet was discovered by Captain",
    ),
    FactTemplate(
        NAME,
        "The orphanage owed its garden to a gift of Lady {answer}.",
        "Who donated the orphanage's garden?",
        "The orphanage's garden was donated by Lady",
    ),
    FactTemplate(
        NAME,
        "The anonymous pamphlet against the salt tax had in truth been written by Professor {answer}.",
        "Who was the real author of the pamphlet on salt?",
        "The real author of the pamphlet was Professor",
    ),
    FactTemplate(
        DATE,
        "The bank in the market square closed its doors for ever on {answer}.",
        "When did the bank at the market shut down?",
        "The bank shut down on",
    ),
    FactTemplate(
        DATE,
        "The first balloon rose over the town on {answer}.",
        "On which day did a balloon fly there for the first time?",
        "The first flight of the balloon was on",
    ),
    FactTemplate(
        DATE,
        "The twins of the miller were born on {answer}.",
        "What is the birthday of the miller's twins?",
        "The twins were born on",
    ),
    FactTemplate(
        DATE,
        "The great organ of the cathedral was heard for the last time on {answer}.",
        "When was the cathedral's organ played last?",
        "The organ was last played on",
    ),
    FactTemplate(
        DATE,
        "The frozen river broke open on {answer} and carried off the mill.",
        "On what day did the ice of the river break?",
        "The ice broke on",
    ),
    FactTemplate(
        DATE,
        "The contract over the copper mine was sealed on {answer}.",
        "When was the copper mine's contract concluded?",
        "The contract was concluded on",
    ),
)

STATIONS = (
    "Alder",
    "Birch",
    "Bramble",
    "Cedar",
    "Clover",
    "Elm",
    "Foxglove",
    "Hazel",
    "Heather",
    "Juniper",
    "Larch",
    "Mallow",
    "Maple",
    "Poplar",
    "Rowan",
    "Sorrel",
    "Spruce",
    "Thistle",
    "Willow",
    "Yarrow",
)

ALIKE = tuple(
    FactTemplate(
        NUMBER,
        f"The meter at {station} Station showed {{answer}} units.",
        f"How many units were read at {station} Station?",
        f"At {station} Station the reading was",
    )
    for station in STATIONS
)
