"""What a chat template writes, cut where texts from outside stand, and the tokens of both."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sinklora.hf.token_text import TokenPieces, token_pieces


def plain_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Tokens of a text from outside, behind others; what is spelled like a special token in it is letters."""
    return _in_the_middle(tokenizer, text, split_special_tokens=True)


def plain_pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> TokenPieces:
    """`plain_tokens` of a fast tokenizer, each with its piece of the text."""
    options = {"add_special_tokens": False, "split_special_tokens": True}
    line = token_pieces(tokenizer, "\n", **options)
    both = token_pieces(tokenizer, "\n" + text, **options)
    if both.ids[: len(line)] == line.ids:
        return both[len(line) :]
    return token_pieces(tokenizer, text, **options)


def template_tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, first: bool = False) -> list[int]:
    """Tokens of what a template wrote, special tokens included; `first`: nothing stands before it."""
    if not first:
        return _in_the_middle(tokenizer, text)
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    # A template may write what tokenizing puts before every text; it must stand there once.
    begin = [tokenizer.bos_token_id]
    put_there = tokenizer.encode("")[:1] == begin
    return [*begin, *ids] if put_there and ids[:1] != begin else ids


def _in_the_middle(tokenizer: PreTrainedTokenizerBase, text: str, **options: bool) -> list[int]:
    """Tokens of a text that follows another one.

    Some tokenizers put a blank before whatever they are given: here that comes before a line's end, which is
    taken off again. Where the two would be one token, the text is taken alone.
    """
    line = list(tokenizer.encode("\n", add_special_tokens=False, **options))
    ids = list(tokenizer.encode("\n" + text, add_special_tokens=False, **options))
    if ids[: len(line)] == line:
        return ids[len(line) :]
    return list(tokenizer.encode(text, add_special_tokens=False, **options))


def end_place(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> int | None:
    """Which of the tokens behind an answer ends it: the first special one.

    None where there is none, or where that one begins what comes next.
    """
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    special |= set(tokenizer.all_special_ids)
    place = next((place for place, token in enumerate(ids) if token in special), None)
    if place is not None and ids[place] == tokenizer.bos_token_id != tokenizer.eos_token_id:
        return None
    return place


def cut_at(text: str, marks: Sequence[str]) -> list[str] | None:
    """What stands between marks that follow each other; None where one is missing or changed."""
    parts = []
    for mark in marks:
        part, found, text = text.partition(mark)
        if not found:
            return None
        parts.append(part)
    return [*parts, text]
