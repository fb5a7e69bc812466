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

from sinklora.evaluate.paired_effects import Effect, holm
from sinklora.records.checks import check_fields, one_of, read_fields

OUTCOMES = ("held", "held in part", "did not hold", "not decided", "cannot be measured here")

LEVEL = 0.05  # of a whole family of claims, after Holm's correction


@dataclass(frozen=True)
class Claim:
    """A sentence and what became of it.

    `item`: of the paper, such as "Table 1". `estimate` with `low` and `high` (95 %) in `unit`, positive where
    the sentence is right. `n`: of what, and how many. `table`: the output that holds the numbers; `model`: in
    words. `restated`: the sentence is ours, not the paper's. `reason`: why it could not be decided.
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

    def __post_init__(self) -> None:
        check_fields(self)


def decide(effect: Effect, p: float | None = None) -> str:
    """The outcome of "this is more than 0", by the p-value of the effect, or an adjusted one."""
    chance = effect.p if p is None else p
    if math.isnan(chance) or chance >= LEVEL:
        return "not decided"
    return "held" if effect.estimate > 0 else "did not hold"


def decide_equal(effect: Effect, margin: float) -> str:
    """The outcome of "the difference is less than `margin` either way" (two one-sided tests at 5 %)."""
    if math.isnan(effect.low90):
        return "not decided"
    if -margin < effect.low90 and effect.high90 < margin:
        return "held"
    return "did not hold" if effect.low > margin or effect.high < -margin else "not decided"


def with_effect(claim: Claim, effect: Effect) -> Claim:
    """A claim with the numbers of an effect; its outcome stays."""
    ends = [None if math.isnan(x) else x for x in (effect.low, effect.high)]
    return replace(claim, estimate=effect.estimate, low=ends[0], high=ends[1], n=effect.units)


def family(effects: Mapping[Claim, Effect]) -> list[Claim]:
    """Claims of the form "this is more than 0", decided together: one correction for all of them.

    The outcome that a claim comes with is replaced, unless its `reason` says why it cannot be decided.
    """
    adjusted = holm([effect.p for effect in effects.values()])
    decided = []
    for (claim, effect), p in zip(effects.items(), adjusted, strict=True):
        outcome = claim.outcome if claim.reason else decide(effect, p)
        decided.append(with_effect(replace(claim, outcome=outcome), effect))
    return decided


def combined(outcomes: Iterable[str]) -> str:
    """The outcome of a sentence that several outcomes make up."""
    found = [outcome for outcome in outcomes if outcome != "cannot be measured here"]
    if not found:
        return "cannot be measured here"
    if len(set(found)) == 1:
        return found[0]
    return "held in part" if {"held", "held in part"} & set(found) else "not decided"


def together(claims: Sequence[Claim]) -> str:
    """The outcome of claims together, of the paper's own sentences where there are any; empty without any."""
    papers = [claim for claim in claims if not claim.restated] or claims
    return combined(claim.outcome for claim in papers) if claims else ""


def told(claim: Claim) -> str:
    """A claim in one line: outcome, sentence, numbers."""
    restated = " (in our words)" if claim.restated else ""
    text = f"{claim.outcome.capitalize()}{restated}: {claim.sentence}"
    if claim.estimate is not None:
        text += f": {claim.estimate:+.3g}"
        if claim.low is not None and claim.high is not None:
            text += f" (95 % interval {claim.low:+.3g} to {claim.high:+.3g})"
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
