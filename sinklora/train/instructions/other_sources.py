"""RedPajama, BookSum and LongQA: what each row of their files gives."""

from collections.abc import Mapping
from typing import Any

from sinklora.records.placed_fields import check_characters, field_of, optional_text
from sinklora.train.instructions.continuations import INSTRUCTION, MOST_WORDS, cut_words
from sinklora.train.instructions.pairs import Pair, Unusable, text_hash

SUMMARIZE = "Below is a chapter of a book. Read it and summarize it.\n\n{chapter}"

LEAST_TEXT = 400  # words of a text that is continued

MOST_GIVEN = 4_000  # words of it that are given

LEAST_LONG = 1_000  # words of a long question with its document: LongAlpaca mixes in short ones

TOO_SHORT, NO_SUMMARY, NOT_LONG = Unusable("too short"), Unusable("no summary"), Unusable("not long")


def read_redpajama(row: Mapping[str, Any], place: str) -> Pair | Unusable:
    """The beginning of a text, and what comes next (`text`, `meta` of RedPajama-Data).

    The paper does not say how it makes instructions of plain text.
    """
    text = field_of(row, "text", str, place)
    cut = cut_words(text, MOST_GIVEN, MOST_WORDS) if len(text.split()) >= LEAST_TEXT else None
    if cut is None:
        return TOO_SHORT
    subset = row.get("red_pajama_subset") or _meta(row).get("source") or ""
    return Pair(INSTRUCTION.format(text=cut.given), cut.next, text_hash(text), str(subset))


def _meta(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object beside a text; in some files it is the text of one, which says nothing that is needed."""
    meta = row.get("meta")
    return meta if isinstance(meta, dict) else {}


def read_booksum(row: Mapping[str, Any], place: str) -> Pair | Unusable:
    """A chapter and its summary: `chapter`, `summary_text` of the hub's files, `text`, `summary` (lists of
    paragraphs or sentences, or text) of those that BookSum's own scripts gather.
    """
    is_of_the_hub = "chapter" in row or "summary_text" in row
    names = ("chapter", "summary_text") if is_of_the_hub else ("text", "summary")
    chapter, summary = (_joined(row, name, place).strip() for name in names)
    if not chapter or not summary:
        return NO_SUMMARY
    book = str(row.get("book_id") or row.get("bid") or "")
    return Pair(SUMMARIZE.format(chapter=chapter), summary, text_hash(chapter, summary), book)


def _joined(row: Mapping[str, Any], name: str, place: str) -> str:
    """A text, or a list of texts as paragraphs."""
    value = row.get(name)
    if name in row and value is None:  # an empty cell, in some formats
        return ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n\n".join(value)
    if not isinstance(value, str):
        raise ValueError(f"{place}: {name!r} is {value!r:.80}, expected text")
    check_characters(value, name, place)
    return value


def read_longqa(row: Mapping[str, Any], place: str) -> Pair | Unusable:
    """A question with its document as `instruction`, and its `output`, as LongAlpaca's files have them; an
    `input`, which the long ones lack, is put behind the instruction.
    """
    instruction, output = (field_of(row, name, str, place).strip() for name in ("instruction", "output"))
    whole = f"{instruction}\n\n{optional_text(row, 'input', place)}".strip()
    if len(whole.split()) < LEAST_LONG or not output:
        return NOT_LONG
    return Pair(whole, output, text_hash(whole, output), str(row.get("file") or ""))
