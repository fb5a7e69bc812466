"""What is said of the small base's caches has one correction for all that is compared."""

import numpy as np
import pandas as pd

from sinklora.cache.h2o import H2O
from sinklora.cache.sliding_window import SlidingWindow
from sinklora.reproduction.cache.paired_outcomes import outcomes
from sinklora.reproduction.cache.study import PERPLEXITY, RECALL, at_budgets, h2o_variants, policies
from sinklora.reproduction.cache.verdict import notes_on_ours, variants_verdict

BUDGETS = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75]


def test_all_comparisons_are_counted() -> None:
    right = {"h2o": [1.0] * 4, "local": [0.0] * 4, "streaming": [0.0] * 4, "novelty": [0.0] * 4}
    rows = pd.DataFrame(
        [
            {"measure": RECALL, "policy": policy, "budget": budget, "item": str(i), "value": value}
            for budget in BUDGETS
            for policy, values in right.items()
            for i, value in enumerate(values)
        ]
    )
    said = notes_on_ours(rows)
    assert said.startswith("Note on novelty, not published: worse than the best of h2o, local, streaming in")
    assert said.endswith("8 of 8 comparisons (Holm's correction); better in 0.")
    assert notes_on_ours(rows[rows.policy != "novelty"]) == ""


def test_one_lucky_budget_of_eight_decides_nothing() -> None:
    """A lead at 5 % whose p of 0.02 is sure alone; at the others no lead at all."""
    noise = [0.1 * (-1) ** i for i in range(20)]
    lines = [
        {"measure": PERPLEXITY, "policy": policy, "budget": budget, "item": str(i), "value": value}
        for budget in BUDGETS
        for i, x in enumerate(noise)
        for policy, value in (("h2o", 2.0), ("local", 2.0 + x + (0.06 if budget == 0.05 else 0.0)))
    ]
    rows = pd.DataFrame(lines)
    assert "h2o at 5 % (1 of 1 others not surely worse)" in variants_verdict(rows)
    assert "h2o at 5 %." in variants_verdict(rows[rows.budget == 0.05])


def test_outcomes_by_hand() -> None:
    sure, same, single = np.array([1.0, 1.1, 0.9, 1.0]), np.zeros(4), np.ones(1)
    assert outcomes([sure, -sure, same, single]) == ["better", "worse", "not decided", "not decided"]
    assert outcomes([np.ones(3), -np.ones(3)]) == ["better", "worse"], "nothing varies"


def test_policies_are_taken_at_every_budget() -> None:
    found = at_budgets(policies, [0.1, 0.3])
    assert found["h2o"] == [H2O(0.1), H2O(0.3)]
    assert found["local"] == [SlidingWindow(0.1), SlidingWindow(0.3)]
    assert list(found) == list(policies(0.1))
    assert list(at_budgets(h2o_variants, [0.1])) == list(h2o_variants(0.1))
