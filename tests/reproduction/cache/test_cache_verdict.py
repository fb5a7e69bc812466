"""What is said of our policy counts its comparisons, and how many of them chance alone would decide."""

import pandas as pd

from sinklora.cache.h2o import H2O
from sinklora.cache.sliding_window import SlidingWindow
from sinklora.reproduction.cache.study import RECALL, at_budgets, h2o_variants, policies
from sinklora.reproduction.cache.verdict import leads_over_local

BUDGETS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75]


def test_one_in_forty_comparisons_is_lost_by_chance() -> None:
    right = {"h2o": [1.0] * 4, "local": [0.0] * 4, "streaming": [0.0] * 4, "novelty": [0.0] * 4}
    rows = pd.DataFrame(
        [
            {"measure": RECALL, "policy": policy, "budget": budget, "item": str(i), "value": value}
            for budget in BUDGETS
            for policy, values in right.items()
            for i, value in enumerate(values)
        ]
    )
    said = leads_over_local(rows)
    assert "8 of 8 comparisons (0.2 would be by chance alone); better in 0." in said
    assert said.startswith("recall: H2O is better than Local at 5 %, 10 %,")


def test_policies_are_taken_at_every_budget() -> None:
    found = at_budgets(policies, [0.1, 0.3], ["h2o", "local"])
    assert found == {"h2o": [H2O(0.1), H2O(0.3)], "local": [SlidingWindow(0.1), SlidingWindow(0.3)]}
    assert list(at_budgets(policies, [0.1])) == list(policies(0.1))
    assert list(at_budgets(h2o_variants, [0.1])) == list(h2o_variants(0.1))
