"""Table 5: which caches are timed, which way its ratios point, and what is said of them."""

from functools import partial

import pytest

from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.evaluate.generation_cost import (
    cache_bound_model,
    compare_caches,
    generation_rounds,
    medians_of_rounds,
)
from sinklora.hf.budget_cache import BudgetCache
from sinklora.reproduction.cache.cost_claims import time_claims
from sinklora.reproduction.cache.generation_study import timed_caches
from sinklora.reproduction.cache.verdict import cost_verdict


def test_times_faster_and_times_as_long_are_to_transformers_cache() -> None:
    model = cache_bound_model(layers=1, heads=2, head_size=8)
    caches = {
        "full (ours)": partial(BudgetCache, model, Full()),
        "h2o 20%": partial(BudgetCache, model, H2O(0.2)),
    }
    costs = compare_caches(model, caches, prompt_tokens=40, new_tokens=3, batch=2, rounds=1, progress=False)
    base = costs[costs.cache == "transformers' cache"].iloc[0]
    # One round: medians are the values themselves, and more tokens a second is faster.
    faster = costs["decoded tokens/s"] / base["decoded tokens/s"]
    assert costs["decoding, times faster"].tolist() == pytest.approx(faster.tolist())
    longer = costs["prompt (s)"] / base["prompt (s)"]
    assert costs["prompt, ratio"].tolist() == pytest.approx(longer.tolist())
    assert costs["decoding, times faster"].nunique() == costs["prompt, ratio"].nunique() == 3
    shares = costs["cache (MiB)"] / base["cache (MiB)"]
    assert costs["cache, share"].tolist() == pytest.approx(shares.tolist())
    assert "The paper reports 4.4 hours against 4.7" in cost_verdict(costs)


def test_the_timed_caches_are_those_that_claims_and_verdict_speak_of() -> None:
    model = cache_bound_model(layers=1, heads=2, head_size=8)
    sizes = {"prompt_tokens": 40, "new_tokens": 3, "batch": 2, "rounds": 1}
    rounds = generation_rounds(model, timed_caches(model), **sizes, progress=False)
    costs = medians_of_rounds(rounds)
    assert {"full (ours)", "h2o 5%", "h2o 20%", "local 20%", "streaming 20%", "replay 20%"} <= set(
        costs.cache
    )
    claims = time_claims(rounds, [3], 2)
    assert [(claim.item, claim.outcome, claim.n) for claim in claims] == [
        ("Table 5", "not decided", "1 round")
    ] * 2
    assert cost_verdict(costs).startswith("H2O at 20 % decodes")
    kept = costs.set_index("cache")["cache (MiB)"]
    assert kept["h2o 5%"] < kept["h2o 20%"] < kept["full (ours)"]
