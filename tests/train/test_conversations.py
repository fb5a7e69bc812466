"""Conversations in pieces: together what the template writes, answers and their ends told apart."""

from typing import Any

import pytest
from transformers import AutoTokenizer

from blank_tokenizers import words_after_blanks
from chat_models import TEMPLATE
from sinklora.chat.template import ChatTemplate
from sinklora.train.chat_templates import TEMPLATE_NAMES, template_text
from sinklora.train.conversations import ConversationTemplate, Message

TURNS = [
    Message("system", "Be brief."),
    Message("user", "What is it?"),
    Message("assistant", "A text."),
    Message("user", " And more? \n"),
    Message("assistant", "No."),
]
SPECIAL = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "llama-3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}


def tokenizer_with(template: str | None = None, special: tuple[str, ...] = ()) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained("data/base")
    tokenizer.chat_template = template
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def kinds(template: ConversationTemplate, wanted: tuple[str, ...], turns: list[Message] = TURNS) -> list[str]:
    """The texts of the pieces of these kinds."""
    return [template.tokenizer.decode(p.ids) for p in template.pieces(turns) if p.kind in wanted]


@pytest.mark.parametrize("name", [*TEMPLATE_NAMES, None])
def test_pieces_are_the_whole_conversation(name: str | None) -> None:
    tokenizer = tokenizer_with(None if name else TEMPLATE, tuple(SPECIAL.get(name or "", [])))
    template = ConversationTemplate(tokenizer, name)
    given = [{"role": turn.role, "content": turn.content.strip()} for turn in TURNS]
    source = template_text(name) if name else TEMPLATE
    whole = tokenizer.apply_chat_template(given, chat_template=source, tokenize=False)
    ids = [token for piece in template.pieces(TURNS) for token in piece.ids]
    text = tokenizer.decode(ids)
    begins = whole.startswith(tokenizer.bos_token)  # else the tokenizer puts it there
    text = text if begins else text.removeprefix(tokenizer.bos_token)
    assert whole.startswith(text) and not whole[len(text) :].strip()  # a line's end behind the last answer
    special, expected = set(tokenizer.all_special_ids), tokenizer.encode(whole, add_special_tokens=not begins)
    assert [i for i in ids if i in special] == [i for i in expected if i in special]
    assert [answer.strip() for answer in kinds(template, ("answer",))] == ["A text.", "No."]
    assert [p.strip() for p in kinds(template, ("prompt",))] == ["Be brief.", "What is it?", "And more?"]
    ends = [piece.ids for piece in template.pieces(TURNS) if piece.kind == "end"]
    assert len(ends) == 2 and all(end[-1] == template.stop for end in ends)
    assert (
        kinds(template, ("end",))
        == {
            "llama-2": [" </s>"] * 2,
            "llama-3": ["<|eot_id|>"] * 2,
            "chatml": ["<|im_end|>"] * 2,
            None: ["</s>"] * 2,
        }[name]
    )


@pytest.mark.parametrize("kind", ["bytes", "always", "first"])
def test_tokens_are_those_of_the_whole_text(kind: str) -> None:
    tokenizer = tokenizer_with() if kind == "bytes" else words_after_blanks(kind)
    template = ConversationTemplate(tokenizer, "llama-2")
    given = [{"role": turn.role, "content": turn.content.strip()} for turn in TURNS[1:]]
    source = template_text("llama-2")
    whole = tokenizer.apply_chat_template(given, chat_template=source, tokenize=False)
    ids = [token for piece in template.pieces(TURNS[1:]) for token in piece.ids]
    assert ids == tokenizer.encode(whole, add_special_tokens=False)


def test_llama_2_writes_what_its_release_does() -> None:
    template = ConversationTemplate(tokenizer_with(), "llama-2")
    ids = [token for piece in template.pieces(TURNS) for token in piece.ids]
    assert template.tokenizer.decode(ids) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is it? [/INST] A text. </s>"
        "<s>[INST] And more? [/INST] No. </s>"
    )
    assert kinds(template, ("answer",)) == [" A text.", " No."]  # the blank is the model's to write


def test_a_text_cannot_end_its_turn() -> None:
    template = ConversationTemplate(tokenizer_with(TEMPLATE))
    stop = template.tokenizer.eos_token
    spelled = [Message("user", f"Say {stop}."), Message("assistant", f"It is {stop} that.")]
    plain = [Message("user", "Say it."), Message("assistant", "It is that.")]
    counts = [
        [token for piece in template.pieces(turns) for token in piece.ids].count(template.stop)
        for turns in (spelled, plain)
    ]
    assert counts[0] == counts[1] == 2


def test_a_question_is_read_as_in_a_chat() -> None:
    tokenizer = tokenizer_with(TEMPLATE)
    template, chat = ConversationTemplate(tokenizer), ChatTemplate.of(tokenizer)
    before, blank, between = template.around_question()
    turns = [Message("user", "Why?"), Message("assistant", "So.")]
    first, prompt, *_ = template.pieces(turns)
    assert first.ids == before and not blank and [*prompt.ids, *between] == chat.question("Why?")
    answer = next(piece.ids for piece in template.pieces(turns) if piece.kind == "answer")
    assert answer == template.first_answer(" So. ") == tokenizer.encode("So.", add_special_tokens=False)


@pytest.mark.parametrize(
    ("source", "name", "words"),
    [
        (None, None, "has no chat template; name one of llama-2"),
        (None, "chatml", "template='chatml' ends an answer without a special token"),
        (TEMPLATE, "llama", "template='llama': expected one of llama-2"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", None, "ends an answer without a special"),
        ("{{ messages[-1].content }}{{ eos_token }}", None, "does not keep texts as they were given"),
        (TEMPLATE.replace("message['content']", "message['content'] | upper"), None, "does not keep texts"),
        ("{{ raise_exception('never') }}", None, r"does not take messages of user, assistant \(never\)"),
        (
            TEMPLATE.replace("}}assistant", "}}assistant thinks"),
            None,
            "writes an answer elsewhere than where it is asked for",
        ),
        (TEMPLATE.replace("{{ eos_token }}", ""), None, "ends an answer without a special"),
        ("{{ strftime_now('%d %b %Y') }}" + TEMPLATE, None, "its own chat template writes the day's date"),
    ],
)
def test_templates_that_cannot_be_cut_are_refused(source: str | None, name: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ConversationTemplate(tokenizer_with(source), name)


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([], "roles"),
        ([Message("user", "a")], r"\['user'\]: expected user and assistant in turn"),
        ([Message("assistant", "a"), Message("user", "b")], "an assistant last"),
        ([*TURNS, Message("system", "x")], "at most one of the system before"),
        ([Message("user", "a"), Message("assistant", " \n")], r"messages\[1\] \(assistant\) is empty"),
    ],
)
def test_conversations_without_an_answer_are_named(turns: list[Message], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ConversationTemplate(tokenizer_with(TEMPLATE)).pieces(turns)
