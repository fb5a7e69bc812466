"""Where the words about training steps change: exactly at the thresholds that they name."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sinklora.reproduction.efficiency.claims import training_cost_claims
from sinklora.reproduction.efficiency.longest_context import (
    check_ladder,
    context_verdict,
    ladder_of,
    training_context,
)
from sinklora.reproduction.efficiency.study import BASELINE, EAGER_STEP, SF
from sinklora.reproduction.extension.recipe import read_recipe
from sinklora.reproduction.names import EMBEDDED
from sinklora.reproduction.report.experiments import declared_parameters, load_experiments


def longest(sf: int, full: int = 1000, **others: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"method": [BASELINE, SF, *others], "longest context (tokens)": [full, sf, *others.values()]}
    )


@pytest.mark.parametrize(("sf", "lengthens"), [(900, False), (1000, False), (1100, False), (1101, True)])
def test_a_pattern_lengthens_the_context_from_a_tenth_on(sf: int, lengthens: bool) -> None:
    said = context_verdict(longest(sf))
    assert said.startswith("What lengthens the context is to hold no scores") is not lengthens
    assert f"SF-Attn fits {sf} tokens, full attention 1000" in said
    assert "holds its scores 400" in context_verdict(longest(sf, **{EAGER_STEP: 400}))


def test_the_longest_choice_that_fits_is_trained() -> None:
    frame = longest(sf=1024)
    assert training_context(frame, SF, [512, 1024, 1025]) == 1024
    assert training_context(frame, BASELINE, [512, 1000, 1024]) == 1000


NOTEBOOK = Path("notebooks/03_longest_context.ipynb")


def ladder_parameters(**changes: Any) -> dict[str, Any]:
    return declared_parameters(NOTEBOOK) | changes


def test_the_ladder_is_read_below_the_trained_context_and_at_it() -> None:
    recipe, given = read_recipe("configs/recipes/embedded.yaml"), ladder_parameters(batch_tokens=4096)
    study = ladder_of(recipe, given, 2048)
    assert study.contexts == (512, 1024, 2048)
    assert (study.training.context, study.training.batch_size, study.training.steps) == (2048, 2, 60)
    assert ladder_of(recipe, given, 1536).contexts == (512, 1024, 1536), "which no test context names"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patterns": ["full", "s2"]}, "patterns=.*: add 'sf'; Table 3"),
        ({"patterns": ["sf"]}, "patterns=.*: add 'full'; Table 3"),
        ({"patterns": ["full", "sf", "sff"]}, "sff"),
        ({"train_contexts": []}, "train_contexts=.*: expected at least one"),
        ({"train_contexts": [1024, 8192]}, "at most the 4096 tokens of a piece of 'Table 3'"),
        ({"micro_batch_size": 3}, "micro_batch_size=3: expected a divisor"),
    ],
    ids=str,
)
def test_a_ladder_of_which_no_table_could_be_made_is_refused(changes: dict[str, Any], words: str) -> None:
    recipe = read_recipe("configs/recipes/embedded.yaml")
    with pytest.raises(ValueError, match=words):
        check_ladder(recipe, ladder_parameters(**changes))


def test_the_ladder_of_every_profile_is_accepted() -> None:
    [experiment] = [found for found in load_experiments() if found.notebook == NOTEBOOK.stem]
    for given in experiment.parameters.values():
        parameters = ladder_parameters(**given)
        check_ladder(read_recipe(parameters["recipe"]), parameters)


def steps(*by_length: dict[str, float]) -> pd.DataFrame:
    """A step of each method at 64, 128, ... tokens that takes so many times SF-Attn's time and memory."""
    return pd.DataFrame(
        {"tokens": 64 * 2**place, "method": method, "seconds": 3 * times, "peak_gib": 0.5 * times}
        for place, ratios in enumerate(by_length)
        for method, times in {SF: 1.0, **ratios}.items()
    )


@pytest.mark.parametrize(
    ("ratios", "outcome", "mean"),
    [
        ([1.79], "did not hold", 1.79),
        ([1.8], "held", 1.8),
        ([1.0, 2.6], "held in part", 1.8),
        ([2.0, 2.6], "held", 2.3),
        ([0.9, 1.1], "did not hold", 1.0),
        ([2.0, float("nan")], "held", 2.0),
    ],
)
def test_the_papers_ratio_is_to_hold_at_every_length(ratios: list[float], outcome: str, mean: float) -> None:
    claims = training_cost_claims(steps(*({BASELINE: ratio} for ratio in ratios)), "base")
    assert [claim.outcome for claim in claims] == [outcome] * 2
    assert [claim.estimate for claim in claims] == pytest.approx([mean] * 2)
    assert {(claim.item, claim.restated, claim.model) for claim in claims} == {("Fig. 1", False, EMBEDDED)}


def test_attention_that_holds_its_scores_is_a_claim_of_ours() -> None:
    claims = training_cost_claims(steps({BASELINE: 1.0, EAGER_STEP: 6.0}), "llama2-7b")
    assert [(claim.restated, claim.outcome) for claim in claims] == [
        (False, "did not hold"),
        (False, "did not hold"),
        (True, "held"),
        (True, "held"),
    ]
    assert claims[0].model == "llama2-7b" and "1.8 times the time" in claims[0].sentence


def test_nothing_is_decided_where_no_length_fits_both() -> None:
    time, _ = training_cost_claims(steps({BASELINE: float("nan")}), "base")
    assert (time.outcome, time.reason) == ("not decided", "there is no length that both fit")
