"""Several values in one option: by commas, or refused with the option's name."""

import pytest

from sinklora.records.comma_lists import read_list


def test_values_lie_between_commas() -> None:
    assert read_list("seeds", "0,1, 2", int) == [0, 1, 2]
    assert read_list("budgets", "0.5,1", float) == [0.5, 1.0]
    assert read_list("only", "Fig. 1, h2o", str) == ["Fig. 1", "h2o"]
    assert read_list("seeds", "", int) == []


@pytest.mark.parametrize("text", ["0,x", "0,", "1.5", "0 1"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^seeds='{text}': expected whole numbers separated by commas"):
        read_list("seeds", text, int)


@pytest.mark.parametrize("text", ["a,", ",a", "a, ,b", " "])
def test_an_empty_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^only='{text}': expected texts separated by commas, as in a,b"):
        read_list("only", text, str)
