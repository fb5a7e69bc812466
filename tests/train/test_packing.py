"""Rows of several examples: all in, none over, little wasted, always the same."""

from hypothesis import given
from hypothesis import strategies as st

from sinklora.train.packing import best_fit_rows


@given(st.lists(st.integers(1, 32), max_size=40))
def test_every_example_stands_in_one_row_with_room(lengths: list[int]) -> None:
    rows = best_fit_rows(lengths, 32)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[i] for i in row) for row in rows)
    assert all(used <= 32 for used in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > 32  # no two rows would fit into one
    assert rows == best_fit_rows(lengths, 32)


def test_the_fullest_row_with_room_is_taken() -> None:
    # 7 opens a row, 6 another; 3 fills the first, 4 the second; an order of arrival would need three.
    assert best_fit_rows([3, 7, 4, 6], 10) == [[1, 0], [3, 2]]
