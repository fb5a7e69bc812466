"""Measurements compared, piece by piece and seed by seed, and what they say of the paper's claims."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import pandas as pd

from sinklora.evaluate.paired_effects import Effect, Equivalence, Values, difference, ratio, ratio_within
from sinklora.reproduction.extension.readings import FULL
from sinklora.reproduction.names import BASE, LABELS
from sinklora.reproduction.report.claims import Claim, Tested, family
from sinklora.reproduction.report.published import published_value

NATS = "nats a token"

RIVALS = ("s2_wrapped", "s2")  # the two readings of S²-Attn

SHARES = {
    "sf": "SF-Attn share of full attention's improvement",
    "s2": "S2-Attn share of full attention's improvement",
}
"""The abstract's rows."""

EQUAL = 0.2  # of full attention's improvement: what "as good as" may lack of it

NEAR = 0.05  # of a share: what may lie between ours and the published one

NOT_VALID = "the recipe does not count, trained full attention is not better than no training"

NO_IMPROVEMENT = "on these texts full attention is not surely better than {}: there is little to share"


@dataclass(frozen=True)
class Losses:
    """Mean nats a token on one test set at one context.

    `by_method`: [seeds, documents] of each method, one row for what needs no training.
    """

    by_method: Mapping[str, Values]

    def lead(self, better: str, worse: str) -> Effect:
        """How many nats lower `better` is."""
        return difference(self.by_method[worse], self.by_method[better])

    def share(self, method: str, start: str) -> Effect:
        """The share of full attention's improvement on `start` that a method brings (METHOD, "share").

        Of perplexities, as in the paper's abstract: (p0 - pm) / (p0 - pf).
        """
        return ratio(_improvement_by_method, _improvement_by_full, *self._shared_by(method, start))

    def share_within(self, method: str, start: str, low: float, high: float) -> Equivalence:
        """Whether that share lies between two ends; `high` may be infinite."""
        values = self._shared_by(method, start)
        return ratio_within(_improvement_by_method, _improvement_by_full, low, high, *values)

    def _shared_by(self, method: str, start: str) -> list[Values]:
        return [self.by_method[name] for name in (start, "full", method)]

    def perplexities(self, method: str) -> "pd.Series[float]":
        """Perplexity of each seed."""
        return pd.Series(np.exp(self.by_method[method].mean(1)))


def _improvement_by_method(start: Values, full: Values, method: Values) -> Values:
    return np.asarray(np.exp(start) - np.exp(method))


def _improvement_by_full(start: Values, full: Values, method: Values) -> Values:
    return np.asarray(np.exp(start) - np.exp(full))


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
    by_method = {}
    for method, group in chosen.groupby("method", sort=False):
        table = _by_seed_and_piece(group)
        if table.isna().any(axis=None) or list(table.columns) != pieces:
            raise ValueError(
                f"method={method!r}: not measured on every piece of {test_set!r} with every seed"
            )
        by_method[str(method)] = _by_document(table).to_numpy(dtype=float)
    return Losses(by_method)


def by_seed_and_document(rows: pd.DataFrame) -> pd.DataFrame:
    """The losses of one model: a line a seed (one of what needs no training), a column a document.

    A document's are the mean of its pieces': pieces of one book are no independent units.
    """
    return _by_document(_by_seed_and_piece(rows))


def document_of(piece: str) -> str:
    """The document of a piece: its name without its first token's number."""
    return piece.rpartition(":")[0] or piece


def _by_document(by_piece: pd.DataFrame) -> pd.DataFrame:
    return by_piece.T.groupby(document_of).mean().T


def _by_seed_and_piece(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(seed=rows.seed.fillna(-1)).pivot(index="seed", columns="piece", values="nll")


def table_claims(
    rows: pd.DataFrame, test_set: str, original: int, target: int, start: str, *, valid: bool, model: str
) -> list[Claim]:
    """The claims of `table_effects`; one correction (Holm) for all of them, shares included."""
    return family(table_effects(rows, test_set, original, target, start, valid=valid, model=model))


def table_effects(
    rows: pd.DataFrame, test_set: str, original: int, target: int, start: str, *, valid: bool, model: str
) -> dict[Claim, Tested]:
    """The claims of Tables 1 and 2 on one test set, the published shares first, and what decides each;
    SF-Attn's share is the headline.

    `start`: the best of what needs no training, of which improvements are counted.
    """
    at_target, at_original = losses(rows, test_set, target), losses(rows, test_set, original)
    if "sf" not in at_target.by_method:
        return {}
    blank = Claim(test_set, "", "not decided", unit=NATS, table=_table(test_set), model=model)
    blank = blank if valid else replace(blank, reason=NOT_VALID)
    ours = replace(blank, restated=True)
    unit = f"of the improvement in perplexity on {start}"
    unit += (
        f", of which full attention has {_adaptation(at_original, at_target, start)} in {original} tokens too"
    )
    effects: dict[Claim, Tested] = _shares(replace(blank, unit=unit), at_target, start)
    effects |= {
        replace(
            blank,
            sentence=f"with SF-Attn {target} tokens of context are better than {original}, read by it or by "
            "the base",
        ): _less_sure(
            difference(at_original.by_method["sf"], at_target.by_method["sf"]), at_target.lead("sf", BASE)
        ),
        replace(ours, sentence=f"fine-tuning with SF-Attn is better than none ({_none(start)})"): (
            _less_sure(at_target.lead("sf", start), at_target.lead("sf", BASE))
        ),
        replace(ours, sentence="full attention is better than SF-Attn"): at_target.lead("full", "sf"),
    }
    if start != BASE:
        sentence = "longer positions and full attention are together better than the base in its own windows"
        effects[replace(ours, sentence=sentence)] = at_target.lead("full", BASE)
    for rival in (name for name in RIVALS if name in at_target.by_method):
        sentence = f"SF-Attn is better than {LABELS[rival]}"
        effects[replace(blank, sentence=sentence)] = at_target.lead("sf", rival)
    for other in (name for name in ("short", "sf_shifted") if name in at_target.by_method):
        sentence = f"SF-Attn is better than {LABELS[other]}"
        effects[replace(ours, sentence=sentence)] = at_target.lead("sf", other)
    return effects


def _none(start: str) -> str:
    """What no training leaves: longer positions, and the base itself in windows of its own."""
    return "the base in its own windows" if start == BASE else f"{start}, and the base in its own windows"


def _less_sure(*effects: Effect) -> Effect:
    """Of several that have to be more than 0, the one that says least for it."""
    return min(effects, key=lambda effect: effect.low)


def _table(test_set: str) -> str:
    return test_set.lower().replace(" ", "")


def _adaptation(at_original: Losses, at_target: Losses, start: str) -> str:
    """How much of full attention's improvement at the target it has in the base's own context as well: what
    it learned of such texts, not of longer ones.
    """
    improvements = [
        measured.perplexities(start).mean() - measured.perplexities("full").mean()
        for measured in (at_original, at_target)
    ]
    before, whole = (float(improvement) for improvement in improvements)
    return f"{before / whole:.0%}" if 0 < before < whole else "none" if before <= 0 else "all"


def _shares(blank: Claim, measured: Losses, start: str) -> dict[Claim, Tested]:
    """The abstract's shares, and whether SF-Attn's is near all of it; undecided where full attention improves
    on nothing but `start`. All in our words: the paper's shares are of the improvement on untrained linear
    positions, and without a margin.
    """
    if not blank.reason and start != BASE and not measured.lead("full", BASE).low > 0:
        blank = replace(blank, reason=NO_IMPROVEMENT.format("the base in windows of its own"))
    shares: dict[Claim, Tested] = {}
    for method, row in SHARES.items():
        if method not in measured.by_method:
            continue
        published = published_value("Abstract", row)
        sentence = (
            f"{LABELS[method]} brings {published:.0%} of full attention's improvement on {start}, "
            f"within {100 * NEAR:g} points"
        )
        claim = replace(blank, sentence=sentence, restated=True, headline=method == "sf")
        shares[claim] = measured.share_within(method, start, published - NEAR, published + NEAR)
    sentence = f"SF-Attn lacks no more than {EQUAL:.0%} of that improvement"
    lacks_little = measured.share_within("sf", start, 1 - EQUAL, math.inf)
    return {**shares, replace(blank, sentence=sentence, restated=True): lacks_little}


def order_claims(
    found: Losses,
    order: Sequence[tuple[str, str]],
    labels: Mapping[str, str],
    blank: Claim,
    unmeasurable: Mapping[str, str] = MappingProxyType({}),
) -> list[Claim]:
    """Claims that the first of each pair is better than the second, one correction for all.

    `unmeasurable`: why nothing can be said of a method.
    """
    pairs = [pair for pair in order if set(pair) <= set(found.by_method)]
    leads: dict[Claim, Tested] = {}
    for better, worse in pairs:
        claim = replace(blank, sentence=f"{labels[better]} is better than {labels[worse]}")
        named = [name for name in (better, worse) if name in unmeasurable]
        if named:
            reason = "; ".join(f"{labels[name]}: {unmeasurable[name]}" for name in named)
            claim = replace(claim, outcome="cannot be measured here", reason=reason)
        leads[claim] = found.lead(better, worse)
    return family(leads)
