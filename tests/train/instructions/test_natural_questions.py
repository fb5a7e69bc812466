"""Natural Questions in its three published forms: the same page, question and answer from each."""

from collections.abc import Callable
from typing import Any

import pytest

from instruction_sources import hub_question, original_question, simplified_question
from sinklora.train.instructions.natural_questions import joined, read_natural_question
from sinklora.train.instructions.pairs import Pair, Unusable

FORMS = [lambda row: row, original_question, hub_question]
NAMES = ["simplified", "original", "hub"]
Form = Callable[[dict[str, Any]], dict[str, Any]]


def annotated(**changes: Any) -> dict[str, Any]:
    """A row whose annotation says something else."""
    row = simplified_question(3)
    row["annotations"][0] |= changes
    return row


def read(row: dict[str, Any]) -> Pair:
    found = read_natural_question(row, "file, line 1")
    assert isinstance(found, Pair)
    return found


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_the_page_is_text_and_the_answer_stands_in_it(form: Form) -> None:
    found = read(form(simplified_question(3)))
    assert found.output == "Ada Lovelace"
    assert "\nIt was Ada Lovelace (then young).\n" in found.instruction
    assert found.instruction.endswith("Question: who was it on page 3")
    assert "<" not in found.instruction
    assert found.id == str(-(10**17) - 3)
    assert found.document in ("Page", simplified_question(3)["document_url"])


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_without_a_short_answer_yes_or_no_counts_then_the_long_one(form: Form) -> None:
    none = {"start_token": -1, "end_token": -1, "candidate_index": -1}
    assert read(form(annotated(short_answers=[], yes_no_answer="YES"))).output == "Yes"
    assert read(form(annotated(short_answers=[], yes_no_answer="NO"))).output == "No"
    assert read(form(annotated(short_answers=[]))).output == "It was Ada Lovelace (then young)."
    empty = read_natural_question(form(annotated(short_answers=[], long_answer=none)), "file, line 1")
    assert empty == Unusable("no answer")


def test_several_short_answers_are_listed_and_the_first_annotation_with_one_counts() -> None:
    spans = [{"start_token": 7, "end_token": 8}, {"start_token": 8, "end_token": 9}]
    row = annotated(short_answers=spans)
    assert read(row).output == ", ".join(row["document_text"].split(" ")[7:9])
    unanswered = simplified_question(3)["annotations"][0] | {
        "short_answers": [],
        "long_answer": {"start_token": -1, "end_token": -1, "candidate_index": -1},
    }
    row["annotations"] = [unanswered, *row["annotations"]]
    assert read(row).output


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"document_text": 5}, "'document_text' is 5"),
        ({"question_text": None}, "'question_text' is None"),
        ({"example_id": None}, "'example_id' is None"),
        ({"annotations": 7}, "7 is no list"),
    ],
)
def test_a_row_of_no_known_form_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=f"file, line 9: {words}"):
        read_natural_question({**simplified_question(3), **change}, "file, line 9")


def test_an_answer_outside_of_the_page_is_named() -> None:
    row = annotated(short_answers=[{"start_token": 60, "end_token": 600}])
    with pytest.raises(ValueError, match=r"file, line 9: the answer \(60, 600\) lies outside"):
        read_natural_question(row, "file, line 9")
    with pytest.raises(ValueError, match="line 9: no 'document'; there are 'id'"):
        read_natural_question({"id": "1"}, "file, line 9")


def test_marks_stand_where_they_belong() -> None:
    assert (
        joined(["He", "said", "``", "no", "''", "(", "twice", ")", ",", "then", "left", "."])
        == 'He said "no" (twice), then left.'
    )


@pytest.mark.parametrize(
    ("split", "whole"),
    [
        ("Michael 's Last Dundies is n't it", "Michael's Last Dundies isn't it"),
        ("they 've said I 'll , he 'd and I 'm", "they've said I'll, he'd and I'm"),
        ("50 % of the % signs", "50% of the % signs"),
        ("in 's-Hertogenbosch , the 'sixties", "in 's-Hertogenbosch, the 'sixties"),
    ],
)
def test_ends_of_words_are_joined_to_them(split: str, whole: str) -> None:
    assert joined(split.split(" ")) == whole
