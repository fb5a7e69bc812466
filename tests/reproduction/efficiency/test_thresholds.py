"""Where the words about training steps change: exactly at the thresholds that they name."""

import pandas as pd
import pytest

from sinklora.reproduction.efficiency.longest_context import context_verdict, training_context
from sinklora.reproduction.efficiency.study import BASELINE, EAGER_STEP, SF, verdict


def longest(sf: int, full: int = 1000, **others: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"method": [BASELINE, SF, *others], "longest context (tokens)": [full, sf, *others.values()]}
    )


@pytest.mark.parametrize(("sf", "lengthens"), [(900, False), (1000, False), (1100, False), (1101, True)])
def test_a_pattern_lengthens_the_context_from_a_tenth_on(sf: int, lengthens: bool) -> None:
    said = context_verdict(longest(sf))
    assert said.startswith("Not the pattern lengthens the context") is not lengthens
    assert f"SF-Attn fits {sf} tokens, full attention 1000" in said
    assert "holds its scores 400" in context_verdict(longest(sf, **{EAGER_STEP: 400}))


def test_the_longest_choice_that_fits_is_trained() -> None:
    frame = longest(sf=1024)
    assert training_context(frame, SF, [512, 1024, 1025]) == 1024
    assert training_context(frame, BASELINE, [512, 1000, 1024]) == 1000


@pytest.mark.parametrize(
    ("ratio", "said"), [(1.79, "1.8 did not hold"), (1.8, "1.8 held"), (2.5, "1.8 held")]
)
def test_the_papers_ratio_holds_from_its_value_on(ratio: float, said: str) -> None:
    rows = pd.DataFrame(
        [(64, BASELINE, ratio, ratio, 8.0), (64, SF, 1.0, 1.0, 4.0)],
        columns=["tokens", "method", "seconds", "peak_gib", "needed_tflop"],
    )
    assert verdict(rows).count(f"the paper's {said}") == 2
