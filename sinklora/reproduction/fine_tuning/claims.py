"""What answers about documents say of caches and of tuning with sparse patterns (Fig. 9), in our words."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from sinklora.evaluate.paired_effects import Effect, Equivalence, Values, difference, effect, ratio_within
from sinklora.reproduction.fine_tuning.answers_study import AS_IT_IS, FULL_CACHE, NOTHING_READ
from sinklora.reproduction.names import CACHES, LABELS
from sinklora.reproduction.report.claims import Claim, Tested, family

ENOUGH = 0.8  # of what the full cache, or full attention in tuning, brings

ITEM, TABLE = "Fig. 9", "answers"

NOT_VALID = "tuning with full attention brought nothing for sure on the validation questions"

H2O, STREAMING, REPLAY = CACHES["h2o"], CACHES["streaming"], CACHES["replay"]


def by_file(rows: pd.DataFrame, column: str, factor: float = 1.0) -> Values:
    """Means of a column by file, of one model and cache: [seeds, files]."""
    seeds = rows.assign(seed=rows.seed.fillna(-1), value=factor * rows[column].astype(float))
    return np.asarray(seeds.pivot_table(index="seed", columns="file", values="value").sort_index(axis=1))


def nats(rows: pd.DataFrame, model: str, cache: str) -> Values:
    """Nats a token of the right answers of one model under one cache, as `by_file` has them."""
    return by_file(rows[(rows.model == model) & (rows.cache == cache)], "nats_per_token")


def brought(rows: pd.DataFrame, model: str) -> Effect:
    """Nats that the document brings to a model's right answers, with the full cache."""
    return difference(nats(rows, model, NOTHING_READ), nats(rows, model, FULL_CACHE))


def answer_claims(rows: pd.DataFrame, title: str, *, valid: bool) -> list[Claim]:
    """Whether bounded caches keep what the document brings to the right answers, and whether tuning with a
    sparse pattern brings what full attention does. `rows`: as `answers_study.measure` has them; `valid`:
    whether tuning with full attention surely helped on the validation questions.
    """
    effects = {**_cache_effects(rows, title), **_tuning_effects(rows, title, valid)}
    return family(effects)


def _cache_effects(rows: pd.DataFrame, title: str) -> Mapping[Claim, Tested]:
    """Of the model as it is: H2O (which decides the figure's verdict) and Replay beside the full cache, each
    beside the policy before it.
    """
    full, nothing = (nats(rows, AS_IT_IS, name) for name in (FULL_CACHE, NOTHING_READ))
    blank = _blank(title)
    if brought(rows, AS_IT_IS).low <= 0:
        unknown = replace(blank, reason="with the full cache itself the document brings nothing for sure")
    else:
        unknown = blank
    effects: dict[Claim, Tested] = {}
    for name, rival in ((H2O, STREAMING), (REPLAY, H2O)):
        kept, rivals = (nats(rows, AS_IT_IS, cache) for cache in (name, rival))
        sentence = (
            f"with {name} at least {100 * ENOUGH:g} % of what the document brings to right answers stays"
        )
        enough = replace(unknown, sentence=sentence, unit="of what the document brings", headline=name == H2O)
        sentence = f"with {name} right answers are more likely than with {rival} at the same budget"
        ahead = replace(blank, sentence=sentence, unit="nats a token")
        effects |= {enough: enough_of(nothing, full, kept), ahead: difference(rivals, kept)}
    return effects


def _tuning_effects(rows: pd.DataFrame, title: str, valid: bool) -> Mapping[Claim, Tested]:
    """With the full cache: tuning with full attention beside none, with sparse patterns beside that."""
    tuned = [str(name) for name in rows.model.unique() if name != AS_IT_IS]
    if "full" not in tuned:
        return {}
    base, full = (nats(rows, name, FULL_CACHE) for name in (AS_IT_IS, "full"))
    claim = replace(_blank(title), unit="nats a token", reason="" if valid else NOT_VALID)
    sentence = (
        "tuned on instructions with full attention, a model finds right answers more likely than as it is"
    )
    effects: dict[Claim, Tested] = {replace(claim, sentence=sentence): difference(base, full)}
    for name in tuned:
        if name == "full":
            continue
        sparse, words = nats(rows, name, FULL_CACHE), LABELS.get(name, name)
        sentence = f"tuned with {words}, it gains at least {100 * ENOUGH:g} % of that"
        share = replace(claim, sentence=sentence, unit="of the gain")
        effects[share] = enough_of(base, full, sparse)
        sentence = f"tuned with full attention, right answers are more likely than tuned with {words}"
        effects[replace(claim, sentence=sentence)] = difference(sparse, full)
    return effects


def enough_of(start: Values, best: Values, mine: Values) -> Equivalence:
    """Whether `mine` saves at least ENOUGH of the nats that `best` saves on `start`."""
    return ratio_within(
        lambda first, _, own: first - own,
        lambda first, whole, _: first - whole,
        ENOUGH,
        np.inf,
        start,
        best,
        mine,
    )


def _blank(title: str) -> Claim:
    return Claim(ITEM, "", "not decided", table=TABLE, model=title, restated=True)


def mean_effect(values: Values) -> Effect:
    """A mean over seeds and files, with its interval."""
    return effect(lambda mean: mean, values)
