"""Measurements compared, piece by piece and seed by seed, and what they say of the paper's claims."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from sinklora.evaluate.paired_effects import Effect, Values, difference, effect
from sinklora.reproduction.extension.study import FULL
from sinklora.reproduction.names import BASE, LABELS
from sinklora.reproduction.report.claims import Claim, decide_equal, family, with_effect
from sinklora.reproduction.report.published import published_value

NATS = "nats a token"

RIVALS = ("s2_wrapped", "s2")  # the two readings of S²-Attn

SHARES = {
    "sf": "SF-Attn share of full attention's improvement",
    "s2": "S2-Attn share of full attention's improvement",
}
"""The abstract's rows."""

EQUAL = 0.01  # nats a token, 1 % of perplexity: what "as good as" may differ by

NEAR = 0.05  # of a share: what may lie between ours and the published one

NOT_VALID = "the recipe does not count, trained full attention is not better than no training"

NO_IMPROVEMENT = "on these texts full attention is not surely better than {}: there is little to share"


@dataclass(frozen=True)
class Losses:
    """Mean nats a token on one test set at one context.

    `by_method`: [seeds, pieces] of each method, one row for what needs no training.
    """

    by_method: Mapping[str, Values]

    def lead(self, better: str, worse: str) -> Effect:
        """How many nats lower `better` is."""
        return difference(self.by_method[worse], self.by_method[better])

    def share(self, method: str, start: str) -> Effect:
        """The share of full attention's improvement on `start` that a method brings (METHOD, "share").

        Of perplexities, as in the paper's abstract: (p0 - pm) / (p0 - pf).
        """
        given = (self.by_method[name] for name in (start, "full", method))
        return effect(_share, *given)

    def perplexities(self, method: str) -> "pd.Series[float]":
        """Perplexity of each seed."""
        return pd.Series(np.exp(self.by_method[method].mean(1)))


def _share(start: Values, full: Values, method: Values) -> Values:
    p0, pf, pm = np.exp(start), np.exp(full), np.exp(method)
    return np.asarray((p0 - pm) / (p0 - pf))


def losses(rows: pd.DataFrame, test_set: str, context: int, attention: str = FULL) -> Losses:
    """The losses of all methods read in windows of `context`; the base as it is in its own windows.

    Raises ValueError for what was not measured, and for a method that was not measured on every piece.
    """
    of_set = rows[rows.test_set == test_set]
    if of_set.empty:
        raise ValueError(f"test_set={test_set!r}: measured are {sorted(rows.test_set.unique())}")
    chosen = of_set[(of_set.attention == attention) & ((of_set.context == context) | (of_set.method == BASE))]
    if not (chosen.context == context).any():
        raise ValueError(f"context={context}: measured are {sorted(map(int, of_set.context.unique()))}")
    pieces = sorted(chosen.piece.unique())
    found = {}
    for method, group in chosen.groupby("method", sort=False):
        table = by_seed_and_piece(group)
        if table.isna().any(axis=None) or list(table.columns) != pieces:
            raise ValueError(
                f"method={method!r}: not measured on every piece of {test_set!r} with every seed"
            )
        found[str(method)] = table.to_numpy(dtype=float)
    return Losses(found)


def by_seed_and_piece(rows: pd.DataFrame) -> pd.DataFrame:
    """The losses of one model: a line a seed (one of what needs no training), a column a piece."""
    return rows.assign(seed=rows.seed.fillna(-1)).pivot(index="seed", columns="piece", values="nll")


def table_claims(
    rows: pd.DataFrame, test_set: str, original: int, target: int, start: str, *, valid: bool, model: str
) -> list[Claim]:
    """The claims of Tables 1 and 2 on one test set. `start`: the best of what needs no training."""
    at_target, at_original = losses(rows, test_set, target), losses(rows, test_set, original)
    if "sf" not in at_target.by_method:
        return []
    blank = Claim(test_set, "", "not decided", unit=NATS, table=_table(test_set), model=model)
    blank = blank if valid else replace(blank, reason=NOT_VALID)
    effects = {
        replace(blank, sentence=f"fine-tuning with SF-Attn is better than none ({start})", restated=True): (
            at_target.lead("sf", start)
        ),
        replace(blank, sentence=f"with SF-Attn {target} tokens of context are better than {original}"): (
            difference(at_original.by_method["sf"], at_target.by_method["sf"])
        ),
    }
    if start != BASE:
        for method in ("sf", "full"):
            sentence = f"fine-tuning with {LABELS[method]} is better than the base in windows of its own"
            effects[replace(blank, sentence=sentence, restated=True)] = at_target.lead(method, BASE)
    for rival in (name for name in RIVALS if name in at_target.by_method):
        sentence = f"SF-Attn is better than {LABELS[rival]}"
        effects[replace(blank, sentence=sentence)] = at_target.lead("sf", rival)
    for other, words in (
        ("short", "windows without sinks"),
        ("sf_shifted", "sinks with the half shift kept"),
    ):
        if other in at_target.by_method:
            sentence = f"SF-Attn is better than {words}"
            effects[replace(blank, sentence=sentence, restated=True)] = at_target.lead("sf", other)
    return [*family(effects), _equal(blank, at_target), *_shares(blank, at_target, start)]


def _table(test_set: str) -> str:
    return test_set.lower().replace(" ", "")


def _equal(blank: Claim, found: Losses) -> Claim:
    lead = found.lead("sf", "full")
    outcome = blank.outcome if blank.reason else decide_equal(lead, EQUAL)
    sentence = f"SF-Attn is as good as full attention, within {EQUAL:g} nats"
    return with_effect(replace(blank, sentence=sentence, outcome=outcome, restated=True), lead)


def _shares(blank: Claim, found: Losses, start: str) -> Iterable[Claim]:
    """The abstract's shares; undecided where full attention improves on nothing but `start`."""
    if not blank.reason and start != BASE and not found.lead("full", BASE).low > 0:
        blank = replace(blank, reason=NO_IMPROVEMENT.format("the base in windows of its own"))
    for method, row in SHARES.items():
        if method not in found.by_method:
            continue
        published = published_value("Abstract", row)
        share = found.share(method, start)
        moved = replace(
            share,
            **{
                name: getattr(share, name) - published
                for name in ("estimate", "low", "high", "low90", "high90")
            },
        )
        outcome = blank.outcome if blank.reason else decide_equal(moved, NEAR)
        sentence = f"{LABELS[method]} brings {published:.0%} of full attention's improvement"
        claim = replace(blank, item="Abstract", sentence=sentence, outcome=outcome, unit="of the improvement")
        yield with_effect(claim, share)


def equal_time_claim(lead: Effect, name: str, steps: int, *, valid: bool, model: str) -> Claim:
    """The claim that SF-Attn is better than full attention of as many seconds; ours, not the paper's."""
    sentence = f"SF-Attn is better than {name} ({steps} steps)"
    claim = Claim(
        "Table 1", sentence, "not decided", unit=NATS, table="equal_time", model=model, restated=True
    )
    [decided] = family({claim if valid else replace(claim, reason=NOT_VALID): lead})
    return decided


def order_claims(
    found: Losses, order: Sequence[tuple[str, str]], labels: Mapping[str, str], blank: Claim
) -> list[Claim]:
    """Claims that the first of each pair is better than the second, one correction for all."""
    pairs = [pair for pair in order if set(pair) <= set(found.by_method)]
    return family(
        {
            replace(blank, sentence=f"{labels[better]} is better than {labels[worse]}"): found.lead(
                better, worse
            )
            for better, worse in pairs
        }
    )
