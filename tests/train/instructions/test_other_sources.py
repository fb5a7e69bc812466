"""RedPajama, BookSum and LongQA: pairs from rows as they are published, and rows that give none."""

import json
from typing import Any

import pytest

from instruction_sources import booksum_row, longqa_row, redpajama_row, words
from sinklora.train.instructions.continuations import cut_paragraphs, cut_words
from sinklora.train.instructions.other_sources import read_booksum, read_longqa, read_redpajama
from sinklora.train.instructions.pairs import Pair, Unusable


def read(reader: Any, row: dict[str, Any]) -> Pair:
    found = reader(row, "file, line 1")
    assert isinstance(found, Pair)
    return found


def test_redpajama_gives_the_beginning_of_a_text_and_what_comes_next() -> None:
    row = redpajama_row(1)
    found = read(read_redpajama, row)
    assert found.document == "c4"
    given = found.instruction.partition("\n\n")[2]
    assert f"{given} {found.output}" == row["text"]
    assert len(found.output.split()) == 125  # a quarter


@pytest.mark.parametrize("meta", [json.dumps({"url": "u"}), {"pile_set_name": "x"}])
def test_redpajama_of_the_hub_has_its_subset_beside_the_text(meta: Any) -> None:
    row = {"text": words(450, 1), "meta": meta, "red_pajama_subset": "arxiv"}
    assert read(read_redpajama, row).document == "arxiv"


def test_a_long_text_is_cut_and_a_short_one_is_none() -> None:
    found = read(read_redpajama, {"text": words(9000, 2), "meta": {}})
    assert len(found.instruction.split()) < 4100 and len(found.output.split()) == 250
    assert read_redpajama({"text": words(399, 2), "meta": {}}, "p") == Unusable("too short")


def test_booksum_takes_the_summary_text_of_the_hubs_files() -> None:
    row = booksum_row(4)
    found = read(read_booksum, row)
    assert found.output == row["summary_text"] and row["chapter"].strip() in found.instruction
    assert found.document == "A Book.chapter 4"
    for empty in (" ", None):  # an empty cell comes as either, by the format
        assert read_booksum({**row, "summary_text": empty}, "p") == Unusable("no summary")


def test_booksum_as_its_own_scripts_gather_it() -> None:
    row = {
        "book_id": "A Book.chapters 1-2",
        "chapter_path": "all_chapterized_books/1-chapters/01.txt",
        "summary_path": "finished_summaries/x/section_0_part_0.txt",
        "is_aggregate": True,
        "text": ["First paragraph.", "Second one."],
        "summary": ["It begins.", "It ends."],
    }
    found = read(read_booksum, row)
    assert found.output == "It begins.\n\nIt ends." and "First paragraph.\n\nSecond one." in found.instruction
    assert read(read_booksum, {**row, "text": "One text.", "summary": "One."}).output == "One."


def test_longqa_is_taken_as_it_is_and_short_questions_are_not() -> None:
    row = longqa_row(5)
    found = read(read_longqa, row)
    assert (found.instruction, found.output) == (row["instruction"], row["output"])
    assert read(read_longqa, {**row, "input": "and more"}).instruction.endswith("in it?\n\nand more")
    assert read_longqa({"instruction": "Name a colour.", "output": "Red."}, "p") == Unusable("not long")


@pytest.mark.parametrize(
    ("reader", "row", "said"),
    [
        (read_redpajama, {"meta": {}}, "no 'text'; there are 'meta'"),
        (read_redpajama, {"text": 3}, "'text' is 3, expected str"),
        (read_booksum, {"chapter": "a"}, "'summary_text' is None"),
        (read_booksum, {"text": ["a", 1], "summary": "b"}, r"'text' is \['a', 1\]"),
        (read_longqa, {"instruction": "a"}, "no 'output'"),
        (read_longqa, {"instruction": "a", "output": "b", "input": 1}, "'input' is 1"),
        (read_longqa, {"instruction": "a", "output": "b", "input": []}, r"'input' is \[\]"),
        (read_redpajama, {"text": "a \ud83d"}, r"'text' holds '\\ud83d', half"),
        (read_booksum, {"text": ["a", "\ud83d"], "summary": "b"}, r"'text' holds '\\ud83d', half"),
    ],
)
def test_damaged_rows_are_named(reader: Any, row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"file, line 2: {said}"):
        reader(row, "file, line 2")


def test_a_cut_loses_nothing_but_blanks_between_its_halves() -> None:
    text = "  " + "\n".join(f"line {n}  of it" for n in range(80)) + "  "
    cut = cut_words(text, 200, 70)
    assert cut is not None
    assert len(cut.given.split()) == 200 and len(cut.next.split()) == 70
    assert f"{cut.given} {cut.next}".split() == text.split()[:270]
    assert "line 0  of it\nline 1" in cut.given
    assert cut_words("too few words", 200, 70) is None


def test_paragraphs_stand_in_one_piece_and_in_order() -> None:
    paragraphs = [f"paragraph{n} " + words(30, n) for n in range(40)]
    cuts = list(cut_paragraphs("\n\n".join(paragraphs), 1000))
    assert len(cuts) > 2
    together = "\n\n".join(text for cut in cuts for text in (cut.given, cut.next)).split("\n\n")
    assert together == [p for p in paragraphs if p in together]
    assert all(60 <= len(cut.next.split()) <= 250 and len(cut.given) >= 1000 for cut in cuts)
