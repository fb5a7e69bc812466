"""Requests of lm-evaluation-harness: which have a right number; the others are named by place and text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# Texts of context and continuation (None: pieces of a longer text), and their tokens.
Request = tuple[tuple[str, str] | None, list[int], list[int]]


def check_texts(texts: Sequence[tuple[str, str]], encode: Callable[[str], list[int]]) -> None:
    """Raise ValueError for a pair of context and continuation of which `encode` leaves nothing to score.

    Blanks at the end of a context count as the continuation's, as the harness has it.
    """
    for index, (context, continuation) in enumerate(texts):
        scored = context[len(context.rstrip()) :] + continuation
        if not scored.strip() and not encode(scored):
            raise ValueError(f"{_name(index, (context, continuation))}: has nothing to score")


def check_tokens(requests: Sequence[Request], max_length: int) -> None:
    """Raise ValueError for a request without a token to score, without context, or too long for the model."""
    for index, (texts, context, continuation) in enumerate(requests):
        name = _name(index, texts)
        if not continuation:
            raise ValueError(
                f"{name}: has nothing to score, the tokenizer joins its last token to the context"
            )
        if not context:
            raise ValueError(f"{name}: has an empty context, of which the tokenizer makes no token")
        if len(continuation) > max_length:
            raise ValueError(
                f"{name}: has a continuation of {len(continuation)} tokens, more than max_length={max_length}"
            )


def check_prompt(index: int, prompt: str, new_tokens: int, max_length: int, tokens: Sequence[int]) -> None:
    """Raise ValueError for a prompt (its text and tokens) after which so many tokens cannot be written."""
    if new_tokens >= max_length:
        raise ValueError(
            f"request {index} (prompt ending {prompt[-40:]!r}): asks for {new_tokens} new tokens, which "
            f"leaves no place for a prompt in max_length={max_length}; give a smaller max_gen_toks"
        )
    if not tokens:
        raise ValueError(f"request {index}: has an empty prompt, of which the tokenizer makes no token")


def divided_differently(requests: Sequence[Request]) -> bool:
    """Whether two requests read the same tokens, of which more are one's context than the other's."""
    contexts: dict[tuple[int, ...], int] = {}
    read: Any = ((len(context), (*context, *scored[:-1])) for _, context, scored in requests)
    return any(contexts.setdefault(tokens, length) != length for length, tokens in read)


def _name(index: int, texts: tuple[str, str] | None) -> str:
    """A request's place, and its texts where it has any."""
    if texts is None:
        return f"request {index}"
    return f"request {index} (context ending {texts[0][-40:]!r}, continuation {texts[1][:40]!r})"
