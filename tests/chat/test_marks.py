"""Marks are on the tokens that the cache has kept, and nothing of a text becomes markup."""

import re
from html import unescape

import numpy as np
import pytest

from chat_models import LONG_TEXT, chat_base
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.chat.documents import Document, DocumentError
from sinklora.chat.engine import Conversation
from sinklora.chat.marks import MarkedText, document_pieces, escaped, marked_text
from sinklora.chat.page_html import document_html, status_html, turns_html
from sinklora.chat.session import READING, Turn, View

SPAN = re.compile(r'<span class="k(\d)">([^<]*)</span>')
WILD = "<script>x()</script> <img onerror='x()'> &amp; ${x} {{value}} `x` \"q\""


def read(policy: CachePolicy, text: str, **options: bool) -> MarkedText:
    model, tokenizer = chat_base()
    talk, document = Conversation(model, tokenizer, policy, **options), Document("d", text)
    talk.read(document)
    return marked_text(talk, document_pieces(tokenizer, document, 5000))


def test_a_full_cache_keeps_all_and_the_text_is_whole() -> None:
    marked = read(Full(), LONG_TEXT[:300])
    assert marked.kept.all() and "".join(marked.pieces) == LONG_TEXT[:300]
    assert SPAN.findall(marked.html()) == [("8", escaped(LONG_TEXT[:300]))]


def test_marks_are_where_the_cache_says() -> None:
    marked = read(H2O(60), LONG_TEXT[:400])
    # Beside it, token by token from the cache itself.
    model, tokenizer = chat_base()
    talk = Conversation(model, tokenizer, H2O(60))
    talk.read(Document("d", LONG_TEXT[:400]))
    assert talk.cache is not None
    begin = talk._ids.index(tokenizer.encode(LONG_TEXT[:10], add_special_tokens=False)[0], 3)
    ids = tokenizer.encode(LONG_TEXT[:400], add_special_tokens=False)
    begin = next(at for at in range(len(talk._ids)) if talk._ids[at : at + len(ids)] == ids)
    for layer, heads in enumerate(marked.kept):
        for head, mask in enumerate(heads):
            kept = set(talk.cache.kept_positions(layer)[0, head].tolist())
            assert [begin + at in kept for at in range(len(ids))] == mask.tolist()


def test_the_newest_of_a_stream_are_marked() -> None:
    text = "\n".join(LONG_TEXT for _ in range(3))
    marked = read(StreamingLLM(100), text, stream=True)
    assert marked.kept.shape[-1] > 1500
    where = np.flatnonzero(marked.kept.any((0, 1)))
    assert (
        50 < len(where) <= 100 and (np.diff(where) > 1).sum() <= 1 and where[-1] == marked.kept.shape[-1] - 1
    )


def test_shades_by_hand() -> None:
    kept = np.array([[[1, 0, 1], [1, 0, 0]], [[1, 0, 0], [1, 0, 0]]], dtype=bool)
    marked = MarkedText(("a", "b", "c"), kept)
    assert SPAN.findall(marked.html()) == [("8", "a"), ("0", "b"), ("2", "c")]
    assert SPAN.findall(marked.html(1)) == [("8", "a"), ("0", "b"), ("4", "c")]
    assert SPAN.findall(marked.html(2)) == [("8", "a"), ("0", "bc")]
    assert "of the 4 heads of all 2 layers" in marked.legend()
    assert "of the 2 heads of layer 1 of 2 keep it: 2 of 3 tokens" in marked.legend(1)


def test_nothing_of_a_text_is_markup() -> None:
    marked = MarkedText((WILD[:20], WILD[20:]), np.ones((1, 1, 2), dtype=bool))
    view = View(READING, 0.5, message=WILD, document=WILD, turns=(Turn(WILD, WILD, WILD),), marked=marked)
    for html, times in [(marked.html(), 1), (status_html(view), 1), (turns_html(view.turns), 3)]:
        assert "<script" not in html and "<img" not in html and "${" not in html and "{{" not in html
        assert unescape(html).count(WILD) == times
    assert document_html(view, 0).count("<script") == 0
    assert "50 %" in status_html(view) and "x()" not in status_html(View(READING, 0.5))


def test_documents_of_too_many_tokens_are_refused() -> None:
    _, tokenizer = chat_base()
    for text in ("a b " * 40, "a" * 500):
        with pytest.raises(DocumentError, match="at most 30 tokens"):
            document_pieces(tokenizer, Document("d", text), 30)
