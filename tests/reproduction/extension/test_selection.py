"""What validation chooses, by hand."""

import math

import pandas as pd
import pytest

from measured import measured_rows
from sinklora.reproduction.extension.selection import (
    _beyond,
    best_untrained,
    chosen_rates,
    hardly_trained,
    improvement,
    is_converged,
    is_valid,
    more_steps_in_words,
    validity,
)
from sinklora.reproduction.extension.tables import rates_table, steps_table


def rows(full: dict[float, float], base: float = 2.0) -> pd.DataFrame:
    """Full attention by learning rate at 2048 tokens, the base in its own 512, linear positions untrained."""
    frames = [
        measured_rows({512: {"full": [[9.0, 9.0]]}, 2048: {"full": [[nll - 0.1, nll + 0.1]]}}).assign(
            **{"learning rate": rate}
        )
        for rate, nll in full.items()
    ]
    untrained = measured_rows(
        {512: {"base": [[base, base]], "linear": [[1.0, 1.0]]}, 2048: {"linear": [[4.0, 4.0]]}},
        untrained=("base", "linear"),
    )
    return pd.concat([*frames, untrained.assign(**{"learning rate": math.nan})], ignore_index=True)


def test_the_best_rate_is_that_of_the_lowest_loss() -> None:
    [line] = chosen_rates(rows({0.1: 2.5, 0.3: 1.8, 1.0: 2.2})).to_dict("records")
    assert (line["method"], line["learning rate"], line["inside"]) == ("full", 0.3, True)
    assert line["nll"] == pytest.approx(1.8)


@pytest.mark.parametrize(("best", "next_rate"), [(0.0001, 3e-5), (0.001, 0.003)])
def test_a_grid_goes_on_where_its_best_lies_at_the_end(best: float, next_rate: float) -> None:
    grid = {0.0001: 2.5, 0.0003: 2.4, 0.001: 2.5} | {best: 1.8}
    assert not chosen_rates(rows(grid)).inside.item()
    assert _beyond(rows(grid), "full") == next_rate


def test_what_validation_wants_next_to_untrained_is_named() -> None:
    assert hardly_trained(rows({0.1: 2.5, 0.3: 1.8, 1.0: 2.2})) == {}
    assert hardly_trained(rows({0.1: 2.2, 0.3: 2.3, 1.0: 1.8})) == {}, "at the other end"
    assert hardly_trained(rows({0.1: 1.8})) == {}, "nothing was searched"
    reason = "validation texts prefer the smallest learning rate tried (0.1), next to no training"
    assert hardly_trained(rows({0.1: 1.8, 0.3: 2.0})) == {"full": reason}


def test_no_training_counts_at_its_own_context_or_the_longest() -> None:
    """Linear positions are best at 512 tokens, but only the base as it is may be read there."""
    assert best_untrained(rows({0.1: 1.8})) == ("base", 2.0)
    assert best_untrained(rows({0.1: 1.8}, base=5.0)) == ("linear", 4.0)


def test_a_recipe_counts_if_full_attention_surely_beats_no_training() -> None:
    """Two pieces 0.2 apart, of which the base's are equal: the half width is 12.7 times 0.1."""
    assert is_valid(rows({0.1: 2.5, 0.3: 0.7}))
    assert not is_valid(rows({0.1: 2.5, 0.3: 1.8})), "better by 0.2, and not surely"
    assert not is_valid(rows({0.1: 2.5, 0.3: 2.01}))
    found = improvement(rows({0.1: 2.5, 0.3: 1.8}))
    assert (found.estimate, found.documents) == (pytest.approx(0.2), 2)
    assert found.high - found.low == pytest.approx(2 * 12.706 * 0.1, rel=0.03)
    assert validity(rows({0.1: 2.5, 0.3: 0.7})).startswith("Valid: trained full attention saves 1.3000 nats")


def test_an_improvement_is_paired_by_piece_whatever_their_order() -> None:
    """Linear positions, the best of no training, read two pieces at 4.0 and 4.0; the base is far off."""
    given = rows({0.3: 1.8}, base=9.0)
    assert improvement(given.iloc[::-1]).estimate == improvement(given).estimate == pytest.approx(2.2)


def test_pieces_of_one_book_are_one_unit() -> None:
    given = rows({0.3: 1.8})
    assert is_valid(rows({0.3: 0.7})) and improvement(given).documents == 2
    same_book = given.assign(piece="a book:" + given.piece.astype(str))
    found = improvement(same_book)
    assert (found.estimate, found.documents) == (pytest.approx(0.2), 1)
    assert not is_valid(rows({0.3: 0.7}).assign(piece=same_book.piece))


def test_the_last_doubling_may_change_one_per_cent() -> None:
    assert is_converged(pd.Series({15: 3.0, 30: 2.0, 60: 1.991}))
    assert not is_converged(pd.Series({15: 3.0, 60: 1.98, 30: 2.0}))
    assert not is_converged(pd.Series({60: 2.0}))


@pytest.mark.parametrize(
    ("by_steps", "said"),
    [
        (
            {30: 2.0, 60: 1.95, 120: 1.93},
            "120 steps change full attention's validation perplexity by -2.0 %: trained for 60, the table is "
            "short of that.",
        ),
        (
            {60: 1.95, 120: 1.945},
            "120 steps change full attention's validation perplexity by -0.5 %: the table's 60 are not short "
            "of that.",
        ),
        (
            {60: 1.95, 120: 2.0},
            "120 steps change full attention's validation perplexity by +5.1 %: the "
            "table's 60 are not short of that.",
        ),
        ({30: 2.0, 60: 1.95}, "Whether more than 60 steps would be better was not measured."),
        ({30: 2.0, 120: 1.5}, "Whether more than 60 steps would be better was not measured."),
        ({}, "Whether more than 60 steps would be better was not measured."),
    ],
)
def test_a_table_says_whether_more_steps_would_be_better(by_steps: dict[int, float], said: str) -> None:
    tried = pd.DataFrame({"steps": list(by_steps), "nll": list(by_steps.values())})
    assert more_steps_in_words(tried, 60) == said


def test_the_table_marks_what_was_chosen() -> None:
    written = rates_table(rows({0.1: 2.5, 0.3: 1.8})).written()
    assert written.method.tolist() == ["base", "linear", "full", "full"]
    assert written.chosen.tolist() == ["", "", "", "chosen"]
    assert written.perplexity.tolist() == [f"{math.exp(nll):.3f}" for nll in (2.0, 4.0, 2.5, 1.8)]


def test_steps_stand_beside_no_training() -> None:
    by_steps = pd.DataFrame({"steps": [30, 60], "learning rate": [3e-4, 1e-3], "nll": [2.0, 1.5]})
    written = steps_table(by_steps, 2.5).written()
    assert [int(steps) for steps in written.steps] == [0, 30, 60]
    assert written["learning rate"].tolist() == ["–", "0.0003", "0.001"]
    assert written.perplexity.tolist() == [f"{math.exp(nats):.3f}" for nats in (2.5, 2.0, 1.5)]
