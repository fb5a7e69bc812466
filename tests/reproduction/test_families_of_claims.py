"""Whatever decides claims decides all of them together: one correction, of every comparison that was made."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pass_keys_by_hand import pass_key_rows
from sinklora.evaluate.generation_cost import OWN
from sinklora.reproduction.ablations import claims as ablations
from sinklora.reproduction.ablations.quality_cost import front_verdict
from sinklora.reproduction.cache.cost_claims import generation_claims, time_claims
from sinklora.reproduction.cache.generation_study import DECODING, PROMPT
from sinklora.reproduction.cache.replay_study import replay_claims
from sinklora.reproduction.cache.study import PERPLEXITY
from sinklora.reproduction.efficiency.longest_context import ladder_claims
from sinklora.reproduction.extension.bounded import FULL_CACHE, bounded_claims
from sinklora.reproduction.extension.comparison import Losses, order_claims
from sinklora.reproduction.extension.equal_time import EqualTime, equal_time_claims, timed_name
from sinklora.reproduction.fine_tuning.answers_study import AS_IT_IS, NOTHING_READ
from sinklora.reproduction.fine_tuning.answers_study import FULL_CACHE as WHOLE
from sinklora.reproduction.fine_tuning.claims import H2O, REPLAY, STREAMING, answer_claims
from sinklora.reproduction.longbench.claims import cache_claims, tuning_claims
from sinklora.reproduction.names import BASE
from sinklora.reproduction.patterns.attention_study import ALL, ASIDE, KEY_SHARES, curve_column
from sinklora.reproduction.patterns.attention_tables import FIRST, Uniform
from sinklora.reproduction.patterns.claims import attention_claims
from sinklora.reproduction.report.claims import Claim
from sinklora.reproduction.retrieval.claims import cached_key_claims, pass_key_claims

UNITS = 16

NOTHING = np.tile([1.0, -1.0], UNITS // 2)  # a difference of 0 between units that differ: p is 1

LEAD = NOTHING + 0.62  # p is about 0.03

SAME = np.zeros(UNITS)

BLANK = Claim("Table 9", "", "not decided")


def losses(**by_method: Any) -> Losses:
    return Losses({name: np.asarray(values)[None] for name, values in by_method.items()})


def long(values: Mapping[tuple[str, ...], Any], names: list[str], value: str, unit: str) -> pd.DataFrame:
    """One row a unit of each of `values`, whose keys are the columns `names`."""
    return pd.DataFrame(
        dict(zip(names, key, strict=True)) | {unit: f"unit {number:02d}", value: float(one)}
        for key, column in values.items()
        for number, one in enumerate(column)
    )


def extra(beside: bool, **more: Any) -> dict[str, Any]:
    """What is measured as well, where the lead is not alone."""
    return more if beside else {}


def by_length(beside: bool) -> list[Claim]:
    found = losses(full=SAME - 9, none=SAME + 9, sf=SAME, s2=LEAD, **extra(beside, short=NOTHING))
    rivals = ["s2", *extra(beside, short=0)]
    nothing = {"none": {"64": "none"}}
    return ablations.length_claims({"64": found}, "sf", rivals, [], nothing, BLANK)


def by_training(beside: bool) -> list[Claim]:
    found = losses(none=SAME, sf=-LEAD, **extra(beside, s2=NOTHING))
    methods = ["sf", *extra(beside, s2=0)]
    found = replace(found, by_method={**found.by_method, "full": found.by_method["sf"]})
    return ablations.length_claims({"64": found}, "sf", [], methods, {"none": {"64": "none"}}, BLANK)


def by_rivals_and_training(beside: bool) -> list[Claim]:
    """A table that says both corrects for both."""
    found = losses(full=SAME - 9, none=NOTHING, sf=SAME, s2=LEAD)
    methods = ["sf"] if beside else []
    return ablations.length_claims({"64": found}, "sf", ["s2"], methods, {"none": {"64": "none"}}, BLANK)


def by_sweep(beside: bool) -> list[Claim]:
    found = losses(sf=SAME, eight=LEAD, **extra(beside, sixteen=NOTHING))
    methods = {4: "sf", 8: "eight"} | ({16: "sixteen"} if beside else {})
    return ablations.sweep_claims(found, "sink_tokens", methods, BLANK)


def by_order(beside: bool) -> list[Claim]:
    found = losses(sf=SAME, s2=LEAD, **extra(beside, short=NOTHING))
    names = {name: name for name in found.by_method}
    return order_claims(found, [("sf", "s2"), ("sf", "short")], names, BLANK)


def by_equal_time(beside: bool) -> list[Claim]:
    patterns = ["sf", *extra(beside, s2=0)]
    found = losses(sf=SAME, s2=SAME, **{timed_name("sf"): LEAD, timed_name("s2"): NOTHING})
    times = dict.fromkeys(patterns, EqualTime(0.5, 10))
    return equal_time_claims(found, times, valid=True, model="")


def by_bounded_cache(beside: bool) -> list[Claim]:
    measured: dict[tuple[str, ...], Any] = {("sf", FULL_CACHE): SAME, ("sf", "H2O"): SAME}
    measured |= {(name, FULL_CACHE): SAME for name in ("full", "none")}
    measured |= {(name, "H2O"): SAME + 9 for name in ("full", "none")}
    measured |= {("sf", "StreamingLLM"): LEAD, ("sf", "Local"): NOTHING}
    rows = long(measured, ["method", "cache"], "nll", "piece").assign(seed=0)
    others = ["StreamingLLM", *extra(beside, Local=0)]
    claims = bounded_claims(rows, "none", "H2O", others, valid=True, model="")
    assert [claim.outcome for claim in claims[:4]] == ["held", "did not hold", "held", "held"]
    return claims[4:]


def by_pass_keys(beside: bool) -> list[Claim]:
    """16 of 20 keys come back with the base: p is 0.04."""
    models = {BASE: [1] * 16 + [0] * 4, "sf": [1] * 20} | extra(beside, s2=[1] * 20)
    return pass_key_claims(pass_key_rows({name: {512: keys} for name, keys in models.items()}), 256, 512, "")


def by_keys_in_caches(beside: bool) -> list[Claim]:
    nats = {("full",): SAME + 1, ("H2O",): SAME + 2, ("StreamingLLM",): LEAD + 2}
    nats |= {("Local",): NOTHING + 2} if beside else {}
    return cached_key_claims(long(nats, ["cache"], "nats", "trial").assign(tokens=64, correct=True), "")


def by_tuning(beside: bool) -> list[Claim]:
    scores = {("sf",): LEAD, ("s2",): SAME} | ({(BASE,): LEAD - NOTHING} if beside else {})
    return tuning_claims(long(scores, ["model"], "score", "dataset"), "", synthetic=False)


def by_longbench_cache(beside: bool) -> list[Claim]:
    scores = {("full",): SAME + 50, ("H2O",): SAME + 50, ("StreamingLLM",): SAME + 50 - LEAD}
    scores |= {("Local",): NOTHING + 50} if beside else {}
    rows = long(scores, ["cache"], "score", "document").assign(dataset="a set", question="one")
    frame = pd.DataFrame({"data set": ["a set"], "cache": ["full"], "remark": [""], "chance": [0.0]})
    *ahead, near = cache_claims(rows, frame, "")
    assert near.outcome == "held"
    return ahead


def by_answers(beside: bool) -> list[Claim]:
    """H2O is ahead of StreamingLLM; Replay of H2O surely, or by nothing."""
    small = 0.01
    replay = SAME + 2 + small * NOTHING if beside else SAME + 1.9
    nats = {NOTHING_READ: SAME + 9, WHOLE: SAME + 1, H2O: SAME + 2, REPLAY: replay}
    nats[STREAMING] = 2 + small * LEAD
    keys: dict[tuple[str, ...], Any] = {(cache,): values for cache, values in nats.items()}
    rows = long(keys, ["cache"], "nats_per_token", "file").assign(model=AS_IT_IS, seed=None)
    ahead = f"with {H2O} right answers are more likely"
    claims = answer_claims(rows.astype({"seed": "Int64"}), "", valid=True)
    assert [claim.outcome for claim in claims if "at least" in claim.sentence] == ["held"] * 2
    return [claim for claim in claims if claim.sentence.startswith(ahead)]


def by_attention(beside: bool) -> list[Claim]:
    """What the first tokens receive; a tenth of the keys surely receives more than of uniform attention."""
    whole = {curve_column(kind, share): 1.0 for kind in (ALL, ASIDE) for share in KEY_SHARES}
    uniform = Uniform.of(pd.DataFrame([{"tokens": 512} | whole])).by_measure()[FIRST]
    models = {("one",): LEAD} | ({("other",): NOTHING} if beside else {})
    rows = long(models, ["model"], "share", "document")
    first = (uniform + 0.5 * rows.share) / 100
    rows = rows.assign(start=1, tokens=512, layer=0, **{"first 4, head 0": first}, **whole)
    claims = attention_claims(rows.drop(columns="share"))
    assert claims[1].outcome == "held"
    return claims[:1]


def by_replay(beside: bool) -> list[Claim]:
    nats = {("full", 1.0): SAME + 2, ("replay", 0.2): SAME + 2, ("h2o", 0.2): LEAD + 2}
    nats |= {("local", 0.2): NOTHING + 2} if beside else {}
    keys: dict[tuple[str, ...], Any] = {(policy, str(budget)): n for (policy, budget), n in nats.items()}
    rows = long(keys, ["policy", "budget"], "value", "cluster").assign(measure=PERPLEXITY, prompt=64)
    claims = replay_claims(rows.assign(item=rows.cluster, split="").astype({"budget": float}), "", "")
    return [claim for claim in claims if "Replay is better than H2O" in claim.sentence]


def rounds(cache: str, seconds: Any, speed: Any) -> pd.DataFrame:
    turns = {"cache": cache, "round": range(UNITS), "batch": 1, "prompt": 64}
    return pd.DataFrame({**turns, PROMPT: seconds, DECODING: speed})


def times(cache: str, rival: str, beside: bool) -> list[pd.DataFrame]:
    """Decoding is faster with a p of 0.03; the prompt, by far the longest part, surely is, or by nothing."""
    prompt = 1e9 * np.exp(-0.01 * NOTHING) if beside else 1e3 + SAME
    return [rounds(cache, prompt, np.exp(0.01 * LEAD)), rounds(rival, 1e9 + SAME, 1 + SAME)]


def by_time(beside: bool) -> list[Claim]:
    return time_claims(pd.concat(times("h2o 20%", "full (ours)", beside)), [1], batch=1)[:1]


def by_generation_time(beside: bool) -> list[Claim]:
    measured = times("h2o", "full", beside)
    own = measured[0].assign(cache=OWN)
    own = own.assign(**{PROMPT: 9 * own[PROMPT], DECODING: 0.1 * own[DECODING]})  # slower than H2O, surely
    claims = generation_claims(pd.concat([*measured, own]), [1], 0.2, "")
    assert [claim.outcome for claim in claims if OWN in claim.sentence] == ["held"] * 2
    return [claim for claim in claims if "decoding" in claim.sentence][:1]


def by_ladder(beside: bool) -> list[Claim]:
    at = {512: LEAD, 1024: SAME} | ({2048: NOTHING} if beside else {})
    rows = [long({("sf",): nll}, ["method"], "nll", "piece").assign(context=n) for n, nll in at.items()]
    fixed = {"seed": 0, "attention": "full", "test_set": "Table 3", "tokens": 9}
    claims = ladder_claims(pd.concat(rows).assign(**fixed), "Table 3", valid=True, model="")
    return claims[1:]


BUILDERS: list[Callable[[bool], list[Claim]]] = [
    by_length,
    by_training,
    by_sweep,
    by_order,
    by_equal_time,
    by_bounded_cache,
    by_pass_keys,
    by_keys_in_caches,
    by_tuning,
    by_longbench_cache,
    by_answers,
    by_attention,
    by_replay,
    by_time,
    by_generation_time,
    by_ladder,
]


@pytest.mark.parametrize("claims", BUILDERS, ids=lambda claims: claims.__name__)
def test_a_lead_is_surer_alone_than_beside_a_comparison_that_says_nothing(
    claims: Callable[[bool], list[Claim]],
) -> None:
    alone, together = claims(False)[0], claims(True)[0]
    assert alone.sentence == together.sentence and alone.estimate == pytest.approx(together.estimate)
    assert (alone.outcome, together.outcome) == ("held", "not decided")


def test_the_best_at_a_cost_is_one_of_several_that_it_is_compared_with() -> None:
    costs = {"full": 1.0, "sf": 0.25, "other": 0.25}
    found = losses(full=SAME, sf=SAME + 1, other=1 + LEAD, third=1.01 + NOTHING)
    assert "better than every other one" in front_verdict(found, costs)
    both = front_verdict(found, costs | {"third": 0.25})
    assert "not told apart from it: third, other " in both or "not told apart from it: other, third " in both
