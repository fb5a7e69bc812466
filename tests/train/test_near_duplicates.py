"""Near-duplicates by hand: texts that share half of their runs of words."""

import numpy as np

from sinklora.train.near_duplicates import WIDTH, SeenText, word_runs

WORDS = [f"word{number}" for number in range(200)]


def text(begin: int, end: int) -> str:
    return " ".join(WORDS[begin:end])


def test_every_run_of_words_counts_once() -> None:
    assert len(word_runs(text(0, WIDTH - 1))) == 0
    assert len(word_runs(text(0, WIDTH))) == 1
    assert len(word_runs(text(0, 50))) == 50 - WIDTH + 1
    assert len(word_runs(" ".join(["same"] * 100))) == 1


def test_case_and_punctuation_do_not_count() -> None:
    assert np.array_equal(word_runs(text(0, 40)), word_runs(text(0, 40).upper().replace(" ", ", ")))
    assert not np.isin(word_runs(text(0, 40)), word_runs(" ".join(reversed(WORDS[:40])))).any()


def test_the_share_of_what_was_seen() -> None:
    seen = SeenText([text(0, 100)])
    assert seen.share(text(0, 100)) == 1
    assert seen.share(text(100, 200)) == 0
    # Runs that end within the first 100 words: of 0 to 112 (100 runs) those that begin before 88.
    assert seen.share(text(0, 112)) == 88 / 100
    seen.add(text(100, 200))
    assert seen.share(text(100, 200)) == 1
    assert seen.share("too short") == 0
    assert SeenText().share(text(0, 100)) == 0


def test_many_added_texts_are_found_as_if_they_were_one() -> None:
    """Parts are merged on the way; what was added first is found as well as what came last."""
    pieces = [text(begin, begin + 20) for begin in range(0, 180, 10)]
    one_by_one, together = SeenText(), SeenText(pieces)
    for piece in pieces:
        one_by_one.add(piece)
    for begin in range(0, 170, 3):
        asked = text(begin, begin + 30)
        assert one_by_one.share(asked) == together.share(asked)
    assert 0 < together.share(text(0, 60)) < 1
