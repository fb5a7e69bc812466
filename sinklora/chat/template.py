"""A model's chat template in pieces, so that each token of a conversation is read once."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sinklora.hf.template_pieces import cut_at, end_place, plain_tokens, template_tokens

INSTRUCTION = "Read this document. Questions about it follow."

# What stands for a text while the template is cut; no template changes it, and no document can be it.
_TEXT, _QUESTION, _ANSWER = "<<DOCUMENT>>", "<<QUESTION>>", "<<ANSWER>>"


@dataclass(frozen=True)
class ChatTemplate:
    """The text that a chat template puts around a document, questions and answers.

    `head` comes before the document, `between` after it and before the first question, `asked` after a
    question (the answer is next), `answered` after an answer and before a further question.
    """

    tokenizer: PreTrainedTokenizerBase
    head: str
    between: str
    asked: str
    answered: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, instruction: str = INSTRUCTION) -> ChatTemplate:
        """Cut the template of a tokenizer. Raises ValueError where it has none, or one that cannot be cut."""
        name = tokenizer.name_or_path
        if not tokenizer.chat_template:
            raise ValueError(f"tokenizer={name!r}: has no chat template; give a chat model")
        first = {"role": "user", "content": f"{instruction}\n\n{_TEXT}\n\n{_QUESTION}"}
        answer = {"role": "assistant", "content": _ANSWER}
        further = {"role": "user", "content": _QUESTION}
        text = tokenizer.apply_chat_template(
            [first, answer, further], tokenize=False, add_generation_prompt=True
        )
        parts = cut_at(str(text), [_TEXT, _QUESTION, _ANSWER, _QUESTION])
        if parts is None:
            raise ValueError(
                f"tokenizer={name!r}: its chat template does not keep questions and answers as they were "
                "given, so that no cache could serve two turns; give another chat model"
            )
        head, between, asked_before, answered, asked = parts
        if asked_before.rstrip() != asked.rstrip():  # blanks belong to the answer, which brings its own
            raise ValueError(
                f"tokenizer={name!r}: its chat template treats the last question unlike those before it, "
                "so that no cache could serve two turns; give another chat model"
            )
        return cls(tokenizer, head, between, asked, answered)

    def opening(self, document: str) -> list[int]:
        """Tokens of everything up to the first question."""
        return [*self.before_document(), *self.plain(document), *self._of_template(self.between)]

    def before_document(self) -> list[int]:
        """Tokens that stand before the document's own."""
        return self._of_template(self.head, first=True)

    def question(self, text: str) -> list[int]:
        """Tokens of a question, up to where its answer begins."""
        return [*self.plain(text), *self._of_template(self.asked)]

    def next_turn(self) -> list[int]:
        """Tokens between an answer and the next question."""
        return self._of_template(self.answered)

    @property
    def end_place(self) -> int | None:
        """Which token of `next_turn` ends the answer before it; None where none does."""
        return end_place(self.tokenizer, self.next_turn())

    def plain(self, text: str) -> list[int]:
        """Tokens of a text from outside, in which what is spelled like a special token is letters."""
        return plain_tokens(self.tokenizer, text)

    def _of_template(self, text: str, first: bool = False) -> list[int]:
        return template_tokens(self.tokenizer, text, first=first)
