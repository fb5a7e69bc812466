"""Where passages lie in their documents, by hand."""

import numpy as np
import pytest

from sinklora.evaluate.passages import cut_passages


def document(first: int, length: int) -> np.ndarray:
    """A BOS of 0, then consecutive numbers."""
    return np.asarray([0, *range(first, first + length - 1)], dtype=np.uint16)


def test_passages_lie_in_the_middles_of_equal_parts_after_the_bos() -> None:
    # 20 tokens after the BOS, two passages of 4 of them: 12 spare ones, 3 before, 6 between, 3 after.
    found = cut_passages([document(1, 21)], tokens=5, count=2)
    assert [passage.ids.tolist() for passage in found] == [[0, 4, 5, 6, 7], [0, 14, 15, 16, 17]]
    assert [(passage.document, passage.start) for passage in found] == [(0, 4), (0, 14)]


def test_documents_give_in_turn_what_they_have_room_for() -> None:
    documents = [document(100, 3), document(200, 41), document(300, 41), document(400, 5)]
    found = cut_passages(documents, tokens=5, count=4)
    assert [passage.document for passage in found] == [1, 1, 2, 3], "a short one none, the first one more"
    assert found[-1].ids.tolist() == documents[3].tolist(), "a document of that very length is whole"


def test_with_more_documents_than_passages_each_of_the_first_gives_one() -> None:
    found = cut_passages([document(100 * i, 30) for i in range(1, 6)], tokens=4, count=3)
    assert [passage.document for passage in found] == [0, 1, 2]


def test_a_document_without_room_leaves_its_turn_to_others() -> None:
    found = cut_passages([document(1, 9), document(100, 41)], tokens=5, count=6)
    assert [passage.document for passage in found] == [0, 0, 1, 1, 1, 1]


def test_passages_fill_a_document_without_overlap() -> None:
    found = cut_passages([document(1, 13)], tokens=5, count=3)
    assert np.concatenate([passage.ids[1:] for passage in found]).tolist() == list(range(1, 13))


@pytest.mark.parametrize(
    ("lengths", "count", "words"),
    [
        ([4, 4], 1, "count=1, tokens=5: 2 documents have room for 0 passages"),
        ([9], 3, "1 documents have room for 2 passages"),
    ],
)
def test_too_little_text_is_said(lengths: list[int], count: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cut_passages([document(1, length) for length in lengths], tokens=5, count=count)
