"""What the answers say of Fig. 5 (pass keys) and Table 4 (topics)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sinklora.evaluate.paired_effects import Effect, effect, within
from sinklora.evaluate.statistics import Accuracy
from sinklora.reproduction.names import BASE, UNTRAINED
from sinklora.reproduction.report.claims import LOST, Claim, Tested, family
from sinklora.reproduction.retrieval.bounded_caches import CANNOT, FULL, claimed_leads
from sinklora.reproduction.retrieval.cache_tables import keys_table, topics_table

MARGIN = 0.1  # of the keys: so far apart counts as equal

RIVALS = {
    BASE: "the base model",
    "s2": "S²-Attn",
    UNTRAINED: "the extended positions alone, without training",
}

CACHES_APART = "Pass keys and topics through caches (ours)"  # the paper's are about extended models

SURE = 0.9  # of the topics: the paper's least is 0.96


def pass_key_claims(rows: pd.DataFrame, own: int, context: int, model: str) -> list[Claim]:
    """Whether SF-Attn brings pass keys back: more than the base, S²-Attn and no training, as many as full
    attention, and beyond the trained context (tokens).

    Compared is beyond the base's `own` context, up to the trained one: within its own the base needs no
    extension, and lengths at which all models answer would make any two of them alike.

    The units are training seeds and the places of keys (a depth of a length); all models of one seed were
    asked for the same keys. The headline is the lead over extended positions without training, where these
    were asked: what they bring alone is not owed to SF-Attn.
    """
    lengths = sorted(rows.tokens.unique())
    trained = [tokens for tokens in lengths if own < tokens <= context]
    beyond = [tokens for tokens in lengths if tokens > context]
    known = set(rows.model)
    effects: dict[Claim, Tested] = {}
    claim = Claim("Fig. 5", "", "not decided", unit="of the keys", table="pass_key_values", model=model)
    upto = f"beyond the base's {own} and up to the trained {context} tokens"
    for rival, name in RIVALS.items():
        if trained and rival in known and "sf" in known:
            sentence = f"an extension with SF-Attn gives more pass keys back than {name}, {upto}"
            lead = _lead(rows, rival, trained)
            ours = rival == UNTRAINED
            told = replace(claim, sentence=sentence, n=_keys(lead), restated=ours, headline=ours)
            effects[told] = lead
    if beyond and "sf" in known:
        sentence = (
            f"extended with SF-Attn a model gives more than half of the keys back beyond the trained "
            f"{context} tokens, at {_listed(beyond)}"
        )
        ahead = effect(lambda share: share - 0.5, _answers(rows, "sf", beyond))
        effects[replace(claim, sentence=sentence, n=_keys(ahead), restated=True)] = ahead
    if trained and {"sf", "full"} <= known:
        lead = _lead(rows, "full", trained)
        sentence = f"as many as with full attention come back {upto}, to {MARGIN:g} of the keys"
        equal = replace(claim, sentence=sentence, n=_keys(lead), restated=True)
        effects[equal] = within(lead, MARGIN)
    return family(effects)


def _keys(estimated: Effect) -> str:
    return estimated.units.replace("documents", "keys")


def _answers(rows: pd.DataFrame, model: str, lengths: Sequence[int]) -> NDArray[np.floating]:
    """Right answers of a model, [seeds, keys]."""
    chosen = rows[(rows.model == model) & rows.tokens.isin(lengths)]
    seeds = chosen.seed.astype("Int64").fillna(-1)
    wide = chosen.assign(seed=seeds, correct=chosen.correct.astype(float))
    return wide.pivot(index="seed", columns=["tokens", "depth"], values="correct").to_numpy()


def _lead(rows: pd.DataFrame, rival: str, lengths: Sequence[int]) -> Effect:
    sf, other = (_answers(rows, model, lengths) for model in ("sf", rival))
    return effect(lambda ours, theirs: ours - theirs, sf, other)


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths))


def topic_claims(
    found: Mapping[str, Mapping[str, Accuracy]], chance: Mapping[str, float], model: str
) -> list[Claim]:
    """Whether a model extended with SF-Attn names the first topic of a conversation, over all lengths.

    `found`: answers by model, then by set of conversations; `chance`: of each set. Where no set's interval is
    above chance the model cannot follow a conversation.
    """
    by_set = found.get("sf", {})
    claim = Claim(
        "Table 4",
        f"extended with SF-Attn a model names the first topic of more than {100 * SURE:g} % of conversations",
        "cannot be measured here",
        table="table4",
        model=model,
        restated=True,
    )
    if not by_set:
        return [replace(claim, reason="no model was extended with SF-Attn")]
    total = Accuracy(sum(a.correct for a in by_set.values()), sum(a.trials for a in by_set.values()))
    low, high = total.interval()
    numbers = {"estimate": total.share, "low": low, "high": high, "unit": "of the first topics"}
    counted = replace(claim, **numbers, n=f"{total.trials} conversations")  # type: ignore[arg-type]
    if all(accuracy.interval()[0] <= chance[name] for name, accuracy in by_set.items()):
        return [replace(counted, reason="the model does no better than naming any topic")]
    outcome = "held" if low > SURE else "did not hold" if high < SURE else "not decided"
    return [replace(counted, outcome=outcome)]


def cached_key_claims(rows: pd.DataFrame, model: str) -> list[Claim]:
    """Whether a pass key in real text costs fewer nats with one bounded cache than with another (`LEADS`),
    over all lengths at which the full cache does better than chance. The unit is the passage, of which each
    length takes a longer piece.
    """
    frame = keys_table(rows).frame
    usable = rows[rows.tokens.isin(frame[frame.remark != CANNOT].tokens)]
    claim = Claim(
        CACHES_APART, "", "not decided", unit="nats of the digits", table="pass_keys_real", model=model
    )
    claim = replace(claim, restated=True)
    if usable.empty:
        reason = "with the full cache the digits cost as much as by chance at every length"
        sentence = "the digits of a pass key cost fewer nats with H2O than with other bounded caches"
        return [replace(claim, sentence=sentence, outcome="cannot be measured here", reason=reason)]
    wide = usable.pivot_table(index="trial", columns="cache", values="nats", sort=False)
    sentence = "the digits of a pass key cost fewer nats with {} than with {}"
    n = f"{len(wide)} passages × {usable.tokens.nunique()} lengths"
    effects: dict[Claim, Tested] = {
        replace(claim, sentence=sentence.format(better, worse), n=n): effect(
            lambda lead: lead, (wide[worse] - wide[better]).to_numpy()[None]
        )
        for better, worse in claimed_leads(wide.columns)
    }
    return family(effects)


def cached_topic_claims(rows: pd.DataFrame, model: str) -> list[Claim]:
    """Whether through H2O the first topic is the likeliest of a conversation as often as through the full
    cache, over all sets in which that does better than chance.
    """
    frame = topics_table(rows).frame
    usable = rows[rows["set"].isin(frame[frame.remark != CANNOT].conversations)]
    claim = Claim(
        CACHES_APART,
        "through H2O the first topic is the likeliest as often as through the full cache, to "
        f"{LOST:.0%} of what is beyond chance",
        "cannot be measured here",
        unit="of the conversations",
        table="table4_real",
        model=model,
        restated=True,
    )
    if usable.empty:
        return [replace(claim, reason="with the full cache the first topic is found no more than by chance")]
    first = usable.assign(first=(usable["rank"] == 1).astype(float))
    of_full = first[first.cache == FULL]
    beyond = float((of_full["first"] - 1 / of_full.topics).mean())
    wide = first.pivot(index=["set", "conversation"], columns="cache", values="first")
    lead = effect(lambda ours, full: ours - full, wide["H2O"].to_numpy()[None], wide[FULL].to_numpy()[None])
    return family({replace(claim, n=f"{len(wide)} conversations"): within(lead, LOST * beyond)})
