"""Claims: sentences of the paper, and what our numbers say of each. Computed, never typed.

Notebooks decide them from effects, `Report.claims` writes them, and everything that speaks of an outcome
(README, scoreboard, pages, notebooks) reads the same.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from sinklora.evaluate.paired_effects import Effect, Equivalence, holm
from sinklora.records.checks import check_fields, one_of, read_fields

OUTCOMES = ("held", "held in part", "did not hold", "not decided", "cannot be measured here")

LEVEL = 0.05  # of a whole family of claims, after Holm's correction

Tested = Effect | Equivalence  # "this is more than 0", "this lies between two ends"

NEAR = 0.05  # nats a token: a bounded cache that costs so much more than the full one is near it

LOST = 0.2  # of what the full cache does beyond chance: a bounded one that does so much less is near it


@dataclass(frozen=True)
class Claim:
    """A sentence and what became of it.

    `item`: of the paper, such as "Table 1". `estimate` with `low` and `high` (95 %) in `unit`, positive where
    the sentence is right. `n`: of what, and how many. `table`: the output that holds the numbers; `model`: in
    words. `restated`: the sentence is ours, not the paper's. `reason`: why it could not be decided.
    `headline`: it decides the item's verdict (see `deciding`).
    Raises TypeError or ValueError naming the field.
    """

    item: str
    sentence: str
    outcome: Annotated[str, one_of(OUTCOMES)]
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    n: str = ""
    table: str = ""
    model: str = ""
    restated: bool = False
    reason: str = ""
    headline: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    def written(self, value: float) -> str:
        """A number of the claim: with its sign where it is a difference, without where it is a ratio."""
        return f"{value:.3g}" if self.unit.startswith("times") else f"{value:+.3g}"


def decide(tested: Tested, p: float | None = None) -> str:
    """The outcome of what is tested, by its p-value, or an adjusted one."""
    chance = tested.p if p is None else p
    if math.isnan(chance) or chance >= LEVEL:
        return "not decided"
    return "held" if tested.holds else "did not hold"


def with_effect(claim: Claim, effect: Effect) -> Claim:
    """A claim with the numbers of an effect; its outcome stays, and its `n` where it has one.

    Where no unit differs from another there is no interval: that says nothing of how others would.
    """
    ends = (math.nan, math.nan) if effect.error == 0 else (effect.low, effect.high)
    numbers = (effect.estimate, *ends)
    estimate, low, high = (None if math.isnan(number) else number for number in numbers)
    return replace(claim, estimate=estimate, low=low, high=high, n=claim.n or effect.units)


def family(effects: Mapping[Claim, Tested]) -> list[Claim]:
    """Claims that something is more than 0 (`Effect`) or lies between two ends (`Equivalence`), decided
    together: one correction for all of them.

    The outcome that a claim comes with is replaced, unless its `reason` says why it cannot be decided.
    """
    adjusted = holm([effect.p for effect in effects.values()])
    decided = []
    for (claim, tested), p in zip(effects.items(), adjusted, strict=True):
        outcome = claim.outcome if claim.reason else decide(tested, p)
        shown = tested.effect if isinstance(tested, Equivalence) else tested
        decided.append(with_effect(replace(claim, outcome=outcome), shown))
    return decided


def combined(outcomes: Iterable[str]) -> str:
    """The outcome of a sentence that several outcomes make up: held where all held, in part where some did;
    where none held, it did not hold if one did not.
    """
    measured = {outcome for outcome in outcomes if outcome != "cannot be measured here"}
    if not measured:
        return "cannot be measured here"
    if len(measured) == 1:
        return measured.pop()
    if {"held", "held in part"} & measured:
        return "held in part"
    return "did not hold" if "did not hold" in measured else "not decided"


def deciding(claims: Sequence[Claim]) -> list[Claim]:
    """Those of an item's claims that decide its verdict, and of which the scoreboard shows the first.

    Its headline where a claim is marked as one: what the table or figure is there to show, in the paper's own
    number (Tables 1 and 2: the share of full attention's improvement), so that sentences beside it that are
    easier to confirm do not turn "did not hold" into "held in part". Else the paper's own sentences; ours
    where there are none of its own.
    """
    headlines = [claim for claim in claims if claim.headline]
    papers = [claim for claim in claims if not claim.restated]
    return headlines or papers or list(claims)


def together(claims: Sequence[Claim]) -> str:
    """The verdict of an item: the outcome of its `deciding` claims together; empty without any."""
    return combined(claim.outcome for claim in deciding(claims)) if claims else ""


def told(claim: Claim) -> str:
    """A claim in one line: outcome, sentence, numbers."""
    restated = " (in our words)" if claim.restated else ""
    text = f"{claim.outcome.capitalize()}{restated}: {claim.sentence}"
    if claim.estimate is not None:
        text += f": {claim.written(claim.estimate)}"
        if claim.low is not None and claim.high is not None:
            text += f" (95 % interval {claim.written(claim.low)} to {claim.written(claim.high)})"
        text += f" {claim.unit}" if claim.unit else ""
        text += f", {claim.n}" if claim.n else ""
    return f"{text}; {claim.reason}." if claim.reason else f"{text}."


def told_together(claims: Sequence[Claim]) -> str:
    """Several claims as a paragraph."""
    return " ".join(map(told, claims)) if claims else "Nothing is claimed of it."


def claims_to_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """JSON types."""
    return [asdict(claim) for claim in claims]


def read_claims(folder: Path) -> list[Claim]:
    """The claims of a profile's results, in the order of the notebooks; none where none were written."""
    return [
        read_fields(Claim, values)
        for path in sorted(folder.glob("*.json"))
        for values in json.loads(path.read_text(encoding="utf-8"))
    ]
