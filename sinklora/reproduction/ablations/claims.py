"""What the ablations, sweeps and schedules say (Tables 7, 8, 9; sweeps and schedules are ours)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from sinklora.reproduction.extension.comparison import NATS, NOT_VALID, Losses, order_claims
from sinklora.reproduction.names import label
from sinklora.reproduction.report.claims import Claim, Tested, family


def blank_claim(item: str, table: str, *, valid: bool, model: str, restated: bool = False) -> Claim:
    """A claim that is yet to be made, of an item and the table that holds its numbers."""
    claim = Claim(item, "", "not decided", unit=NATS, table=table, model=model, restated=restated)
    return claim if valid else replace(claim, reason=NOT_VALID)


def chain(order: Sequence[str]) -> list[tuple[str, str]]:
    """Each method before the next one of an order, best first."""
    return list(pairwise(order))


NamesByLength = Mapping[str, Mapping[str, str]]  # what doing nothing is called at each length: `untrained_at`


def length_claims(
    measured: Mapping[str, Losses],
    better: str,
    rivals: Sequence[str],
    methods: Sequence[str],
    untrained: NamesByLength,
    blank: Claim,
) -> list[Claim]:
    """Claims that a method is better than each rival at every trained length, and, in our words, that
    training with each of `methods` is better than the best of doing nothing there; one correction for all.

    At a length at which trained full attention is not surely better than the best of doing nothing no rivals
    are compared: who is worse than untrained by less has learned nothing.
    """
    ahead: dict[Claim, Tested] = {}
    taught: dict[Claim, Tested] = {}
    for length, losses in measured.items():
        nothing = _best_untrained(losses, length, untrained)
        counts = losses.lead("full", nothing).low > 0
        claim = blank if counts or blank.reason else replace(blank, reason=f"at {length} tokens {NOT_VALID}")
        for rival in rivals:
            sentence = f"{label(better)} is better than {label(rival)} at {length} tokens"
            ahead[replace(claim, sentence=sentence)] = losses.lead(better, rival)
        for method in methods:
            sentence = f"training with {label(method)} is better than none ({nothing}) at {length} tokens"
            taught[replace(blank, sentence=sentence, restated=True)] = losses.lead(method, nothing)
    return family(ahead | taught)


def _best_untrained(losses: Losses, length: str, untrained: NamesByLength) -> str:
    names = (by_length[length] for by_length in untrained.values())
    return min(names, key=lambda name: float(losses.by_method[name].mean()))


def sweep_claims(found: Losses, field: str, methods: Mapping[float, str], blank: Claim) -> list[Claim]:
    """Claims that SF-Attn's own value is better than each other one, one correction for all."""
    usual = next((value for value, method in methods.items() if method == "sf"), None)
    if usual is None:
        return []
    words = {value: f"{field} = {value:g}" for value in methods}
    effects = {
        replace(blank, sentence=f"{words[usual]}, as in SF-Attn, is better than {words[value]}"): found.lead(
            "sf", method
        )
        for value, method in methods.items()
        if method != "sf"
    }
    return family(effects)


def schedule_claims(
    found: Losses, methods: Sequence[str], costs: Mapping[str, float], blank: Claim
) -> list[Claim]:
    """Claims that each schedule is better than SF-Attn alone, with what it costs beside it."""
    labels = {
        name: f"{label(name)}, at {costs[name] / costs['sf']:.2f} times the attention cost,"
        for name in methods
    }
    return order_claims(found, [(name, "sf") for name in methods], labels | {"sf": label("sf")}, blank)
