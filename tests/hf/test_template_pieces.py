"""Tokens of a text from outside, and the piece of it that each stands for."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from blank_tokenizers import words_after_blanks
from sinklora.hf.template_pieces import plain_pieces, plain_tokens

TEXTS = ["What is it?", " A text.\n", "</s> No.", "\nAnd more?", ""]


@pytest.fixture(scope="module", params=["bytes", "always", "first"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "bytes":
        return AutoTokenizer.from_pretrained("data/base")
    return words_after_blanks(request.param)


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_pieces_are_of_the_tokens_that_a_conversation_reads(tokenizer: Any, text: str) -> None:
    read = plain_pieces(tokenizer, text)
    assert list(read.ids) == plain_tokens(tokenizer, text)
    assert "".join(read.pieces) == text
    assert not set(read.ids) & {tokenizer.bos_token_id, tokenizer.eos_token_id}, "letters, not marks"
