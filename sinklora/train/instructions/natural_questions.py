"""Natural Questions: a page of Wikipedia and a question asked of a search engine (Kwiatkowski et al. 2019).

Three forms of a row are read: the simplified one (`document_text`, tokens between single blanks), the
original one (`document_tokens`), and that of the hub (`document.tokens`, lists in place of objects). Spans
count tokens, markup included.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sinklora.records.placed_fields import field_of
from sinklora.train.instructions.pairs import Pair, Unusable

INSTRUCTION = (
    "Below is a page of an encyclopedia. Read it and answer the question that follows it.\n\n{text}\n\n"
    "Question: {question}"
)

TAG = re.compile(r"</?[A-Za-z][^<>]*>")

BLOCK = re.compile(r"<(P|H[1-6]|Ul|Ol|Dl|Li|Dd|Dt|Table|Tr)\b", re.IGNORECASE)  # begins a line

# Blanks that nobody wrote: in front of marks and of the ends of words ("it 's", "is n't", "50 %"), and behind
# brackets.
LOOSE = re.compile(r" (?=[.,;:!?)\]]|(?:'(?:s|re|ve|ll|d|m)|n't)(?![\w-]))|(?<=\d) (?=%)|(?<=[(\[]) ")

NO_ANSWER = Unusable("no answer")

YES_NO = {"YES": "Yes", "NO": "No", 1: "Yes", 0: "No"}  # of files, of the hub

Span = tuple[int, int]


@dataclass(frozen=True)
class _Annotation:
    long: Span
    short: tuple[Span, ...]
    yes_no: str


@dataclass(frozen=True)
class _Page:
    """The tokens of a page, which of them are markup, and its name."""

    tokens: Sequence[str]
    is_markup: Sequence[bool]
    name: str

    def text(self, span: Span | None = None) -> str:
        """The words of a span, of all tokens by default, a block a line."""
        lines: list[list[str]] = [[]]
        for i in range(*(span or (0, len(self.tokens)))):
            if not self.is_markup[i]:
                lines[-1].append(self.tokens[i])
            elif BLOCK.match(self.tokens[i]):
                lines.append([])
        return "\n".join(joined(words) for words in lines if words)


def read_natural_question(row: Mapping[str, Any], place: str) -> Pair | Unusable:
    """Page and question as instruction; the short answer as output, else yes or no, else the long answer.

    The first annotation with an answer counts. Raises ValueError with the place of a row of no known form,
    and for spans outside of the page.
    """
    page, question, name = _page(row, place)
    for annotation in _annotations(row, place):
        if answer := _answer(page, annotation, place):
            text = INSTRUCTION.format(text=page.text(), question=question)
            return Pair(text, answer, name, page.name)
    return NO_ANSWER


def _page(row: Mapping[str, Any], place: str) -> tuple[_Page, str, str]:
    if "document_text" in row:
        tokens = field_of(row, "document_text", str, place).split(" ")
        markup = [bool(TAG.fullmatch(token)) for token in tokens]
    elif "document_tokens" in row:
        tokens, markup = _objects(field_of(row, "document_tokens", list, place), "html_token", place)
    else:
        document = field_of(row, "document", dict, place)
        tokens, markup = _objects(_as_objects(document.get("tokens"), place), "is_html", place)
        question = field_of(field_of(row, "question", dict, place), "text", str, place)
        title = str(document.get("title") or document.get("url") or "")
        return _Page(tokens, markup, title), question, str(field_of(row, "id", str, place))
    url = str(row.get("document_url", ""))
    question = field_of(row, "question_text", str, place)
    if not isinstance(row.get("example_id"), int | str):
        raise ValueError(f"{place}: 'example_id' is {row.get('example_id')!r}, expected a number or text")
    return _Page(tokens, markup, url), question, str(row["example_id"])


def _objects(items: list[Any], markup: str, place: str) -> tuple[list[str], list[bool]]:
    if not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{place}: expected an object for each token")
    tokens = [field_of(item, "token", str, place) for item in items]
    return tokens, [field_of(item, markup, bool, place) for item in items]


def _as_objects(value: Any, place: str) -> list[dict[str, Any]]:
    """A list of objects, which the hub stores as an object of lists."""
    if isinstance(value, dict) and all(isinstance(values, list) for values in value.values()):
        if len({len(values) for values in value.values()}) > 1:
            raise ValueError(f"{place}: lists of different lengths for {sorted(value)}")
        return [dict(zip(value, values, strict=True)) for values in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise ValueError(f"{place}: {value!r:.80} is no list of objects")
    return value


def _annotations(row: Mapping[str, Any], place: str) -> list[_Annotation]:
    annotations = _as_objects(row.get("annotations"), place)
    return [
        _Annotation(
            _span(field_of(one, "long_answer", dict, place), place),
            tuple(_span(short, place) for short in _as_objects(one.get("short_answers"), place)),
            YES_NO.get(one.get("yes_no_answer", ""), ""),
        )
        for one in annotations
    ]


def _span(span: Mapping[str, Any], place: str) -> Span:
    return field_of(span, "start_token", int, place), field_of(span, "end_token", int, place)


def _answer(page: _Page, annotation: _Annotation, place: str) -> str:
    """What an annotation answers; empty where it says that there is no answer."""
    for span in (annotation.long, *annotation.short):
        if span[0] >= 0 and not span[0] < span[1] <= len(page.tokens):
            raise ValueError(f"{place}: the answer {span} lies outside of {len(page.tokens)} tokens")
    shorts = [text for span in annotation.short if span[0] >= 0 and (text := page.text(span))]
    if shorts:
        return ", ".join(dict.fromkeys(shorts))
    if annotation.yes_no or annotation.long[0] < 0:
        return annotation.yes_no
    return page.text(annotation.long)


def joined(words: Sequence[str]) -> str:
    """Words and marks, which are tokens of their own, as they are written."""
    text = " ".join(words).replace("`` ", '"').replace(" ''", '"')
    return LOOSE.sub("", text)
