"""Conversations as a chat template writes them, in pieces that say which tokens are a model's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sinklora.hf.template_pieces import cut_at, end_place, plain_tokens, template_tokens
from sinklora.train.chat_templates import TEMPLATE_NAMES, template_text

Kind = Literal["template", "prompt", "answer", "end"]


class Message(NamedTuple):
    """What one `role` ("system", "user" or "assistant") says."""

    role: str
    content: str


class Piece(NamedTuple):
    """Tokens of a conversation: the template's, a prompt, an answer, or the `end` of an answer.

    An end is what a model writes to stop: up to and with the special token behind an answer.
    """

    kind: Kind
    ids: list[int]


class ConversationTemplate:
    """Writes conversations by a chat template: by its name in TEMPLATE_NAMES, or None for the tokenizer's.

    Texts are taken without blanks around them, and what is spelled like a special token in one is letters. A
    blank that a template puts before a text becomes its own, as where all is tokenized at once; so one
    between a question and its answer is the model's to write. Raises ValueError for a template that the
    tokenizer lacks or that cannot be cut so: one that changes texts or their order, that writes an answer
    elsewhere than where it is asked for, that ends it without a special token of the tokenizer, so that a
    model would never learn to stop, or that writes the day's date, by which a run would be another tomorrow.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        self.tokenizer, self.name = tokenizer, template
        self._source = _template_source(tokenizer, template)
        if template is None and "strftime_now" in str(tokenizer.chat_template):
            raise self._refusal("writes the day's date, by which a run would be another tomorrow")
        self._frames: dict[tuple[str, ...], list[_Part]] = {}
        self._frame(("user", "assistant"))

    def record(self, *, system: bool = False) -> str:
        """All that the template writes around two questions and answers, which tokens and runs are known by;
        with `system` also what it writes around the same behind a message of the system.
        """
        roles = ("user", "assistant", "user", "assistant")
        wholes = [roles, ("system", *roles)] if system else [roles]
        return "\n".join(
            self._render([Message(role, f"<<{i}>>") for i, role in enumerate(whole)], False)
            for whole in wholes
        )

    def pieces(self, messages: Sequence[Message]) -> list[Piece]:
        """A conversation, from its beginning to the end of its last answer.

        `messages`: perhaps one of the system, then users' and assistants' in turn, an assistant's last, none
        of them empty; ValueError for others.
        """
        check_messages(messages)
        pieces: list[Piece] = []
        frame = self._frame(tuple(message.role for message in messages))
        for part, message in zip(frame, messages, strict=True):
            text = message.content.strip()
            if part.before:
                pieces.append(Piece("template", part.before))
            ids = plain_tokens(self.tokenizer, part.blank + text)
            if message.role == "assistant":
                pieces += [Piece("answer", ids), Piece("end", part.end)]
            else:
                pieces.append(Piece("prompt", ids))
        return pieces

    def around_question(self) -> tuple[list[int], str, list[int]]:
        """Tokens before a first prompt, the blank it begins with, and tokens between it and its answer."""
        question, answer = self._frame(("user", "assistant"))
        return question.before, question.blank, answer.before

    def first_answer(self, text: str) -> list[int]:
        """Tokens of an answer to a first prompt, without its end."""
        blank = self._frame(("user", "assistant"))[1].blank
        return plain_tokens(self.tokenizer, blank + text.strip())

    @property
    def stop(self) -> int:
        """The special token that ends an answer."""
        return self._frame(("user", "assistant"))[1].end[-1]

    def _frame(self, roles: tuple[str, ...]) -> list[_Part]:
        """What stands around the texts of a conversation of these roles."""
        if roles not in self._frames:
            self._frames[roles] = self._cut(roles)
        return self._frames[roles]

    def _cut(self, roles: tuple[str, ...]) -> list[_Part]:
        messages = [Message(role, f"<<Text {number}>>") for number, role in enumerate(roles)]
        whole = self._render(messages, False)
        texts = cut_at(whole, [message.content for message in messages])
        if texts is None or any(whole.count(message.content) != 1 for message in messages):
            raise self._refusal("does not keep texts as they were given and in their order")
        parts: list[_Part] = []
        closing, end = "", list[int]()
        for number, message in enumerate(messages):
            before = texts[number].removeprefix(closing)
            blank = before[len(before.rstrip(" ")) :]
            closing, end = "", []
            if message.role == "assistant":
                asked = self._render(messages[:number], True)
                blank = whole[: whole.index(message.content)].removeprefix(asked)
                if blank.strip():
                    raise self._refusal("writes an answer elsewhere than where it is asked for")
                closing, end = self._end(texts[number + 1])
            ids = template_tokens(self.tokenizer, before.removesuffix(blank), first=not number)
            parts.append(_Part(ids, blank, end))
        return parts

    def _end(self, text: str) -> tuple[str, list[int]]:
        """The text behind an answer up to its first special token, and the tokens of it."""
        ids = template_tokens(self.tokenizer, text)
        stop = end_place(self.tokenizer, ids)
        if stop is None:
            raise self._refusal("ends an answer without a special token of the tokenizer")
        word = str(self.tokenizer.convert_ids_to_tokens(ids[stop]))
        return text[: text.index(word) + len(word)], ids[: stop + 1]

    def _render(self, messages: Sequence[Message], asks: bool) -> str:
        plain_messages = [message._asdict() for message in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    plain_messages, chat_template=self._source, tokenize=False, add_generation_prompt=asks
                )
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise self._refusal(f"does not take messages of {roles} ({error})") from error

    def _refusal(self, what: str) -> ValueError:
        whose = f"template={self.name!r}" if self.name else "its own chat template"
        name = self.tokenizer.name_or_path
        return ValueError(f"tokenizer={name!r}: {whose} {what}; name another of {', '.join(TEMPLATE_NAMES)}")


class _Part(NamedTuple):
    """What stands around one text: tokens before it, the blank it begins with, and of an answer its end."""

    before: list[int]
    blank: str
    end: list[int]


def check_messages(messages: Sequence[Message]) -> None:
    """Raise ValueError unless a conversation can be learned from: see `ConversationTemplate.pieces`."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(
            f"messages have the roles {roles!r:.200}: expected user and assistant in turn, "
            "an assistant last, and at most one of the system before them"
        )
    for number, message in enumerate(messages):
        if not message.content.strip():
            raise ValueError(f"messages[{number}] ({message.role}) is empty: leave the example out")


def _template_source(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | None:
    """The text of a template that we bring; None for the tokenizer's own, which must have one."""
    if name is None:
        if not tokenizer.chat_template:
            raise ValueError(
                f"tokenizer={tokenizer.name_or_path!r}: has no chat template; name one of "
                f"{', '.join(TEMPLATE_NAMES)}"
            )
        return None
    return template_text(name)
