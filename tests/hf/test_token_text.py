"""Every token has its piece of the text, and no character is lost."""

import pytest
from transformers import PreTrainedTokenizerBase

from sinklora.hf.token_text import token_pieces

TEXTS = ["", "x = 12", "  two blanks,\n\n\ta tab\n", "“naïve” café – 兔子 🐇!", "a\r\nb"]


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_the_pieces_make_up_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    read = token_pieces(tokenizer, text)
    assert "".join(read.pieces) == text
    assert list(read.ids) == tokenizer(text)["input_ids"] and len(read) == len(read.pieces)


def test_a_token_has_what_it_decodes_to(tokenizer: PreTrainedTokenizerBase) -> None:
    read = token_pieces(tokenizer, "def add(first, second):\n    return first + second\n")
    assert read.pieces[0] == "", "the mark of the beginning"
    assert list(read.pieces[1:]) == [tokenizer.decode([token]) for token in read.ids[1:]]
    assert read[2:4].ids == read.ids[2:4] and read[2:4].pieces == read.pieces[2:4]
