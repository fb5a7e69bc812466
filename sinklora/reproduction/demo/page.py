"""The page that the demo reads: a prompt, and what comes after it."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sinklora.hf.token_text import TokenPieces

PROMPT_TOKENS = 2000
SCORED_TOKENS = 200  # of the text after the prompt
WRITTEN_TOKENS = 64  # by the model, after the prompt
LEAST_TOKENS = 64  # of prompt and continuation: in less there is nothing to choose from
CHARACTERS = 40_000  # of a text that are looked at

ALICE = "alice.txt"  # chapter I of Alice's Adventures in Wonderland (Lewis Carroll, 1865; public domain)


@dataclass(frozen=True)
class Page:
    """A text cut in two: the prompt's tokens, and those that come after it."""

    prompt: TokenPieces
    continuation: tuple[int, ...]


def page_text(path: Path | None = None) -> str:
    """The text of a file (UTF-8); without one, a chapter of Alice's Adventures in Wonderland.

    Raises FileNotFoundError where there is no such file, ValueError where it is not text.
    """
    if path is None:
        return files(__package__).joinpath(ALICE).read_text(encoding="utf-8")
    if not path.is_file():
        raise FileNotFoundError(f"text={str(path)!r}: no such file")
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(CHARACTERS)
    except UnicodeDecodeError as error:
        raise ValueError(f"text={str(path)!r}: is not UTF-8 text ({error.reason}); convert it") from error


def cut_page(tokens: TokenPieces, trained_tokens: int | None = None) -> Page:
    """At most 2000 tokens of prompt and 200 after it; of a shorter text the same shares.

    `trained_tokens`: the longest context that the model was trained for, which the prompt leaves room to
    write in. Raises ValueError where too little is left.
    """
    total = min(len(tokens), PROMPT_TOKENS + SCORED_TOKENS)
    if trained_tokens is not None:
        total = min(total, trained_tokens - WRITTEN_TOKENS)
    if total < LEAST_TOKENS:
        raise ValueError(
            f"text: {len(tokens)} tokens for a model trained for {trained_tokens}; the demo reads "
            f"{LEAST_TOKENS} or more and writes {WRITTEN_TOKENS}: give a longer text, or another base"
        )
    prompt = total - total * SCORED_TOKENS // (PROMPT_TOKENS + SCORED_TOKENS)
    return Page(tokens[:prompt], tokens.ids[prompt:total])
