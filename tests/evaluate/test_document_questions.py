"""Questions about documents through a cache, against loops that read everything again each time."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_models import LONG_TEXT, chat_base
from helpers import assert_close
from sinklora import H2O, CachePolicy, StreamingLLM
from sinklora.cache.full import Full
from sinklora.evaluate.answer_scores import answer_f1, exact_match
from sinklora.evaluate.document_questions import (
    AskingSpec,
    DocumentQuestion,
    answer_questions,
    answer_table,
    read_questions,
)
from sinklora.hf.budget_cache import BudgetCache
from sinklora.pretrained.loading import LoadedModel

PAGE = LONG_TEXT[:240]
QUESTIONS = [
    DocumentQuestion("first", PAGE, "What is added to x?", ("0", "the number")),
    DocumentQuestion("second", PAGE[:90], "def name_1(", ("x): return",)),
]
LATER = AskingSpec(answer_tokens=3)
AT_ONCE = AskingSpec(answer_tokens=3, question_later=False)


def texts(question: DocumentQuestion) -> tuple[str, str]:
    """What the template of `chat_models` writes up to the document's end, and from there to the answer."""
    opening = f"<s>user\nRead this document. Questions about it follow.\n\n{question.document}"
    return opening, f"\n\n{question.question}</s>\n<s>assistant\n"


@torch.inference_mode()
def plainly(question: DocumentQuestion, policy: CachePolicy, spec: AskingSpec) -> tuple[str, float, int]:
    """Written answer, nats of the likeliest right one and its tokens, the document read again for each."""
    model, tokenizer = chat_base().model, chat_base().tokenizer
    opening, later = (tokenizer.encode(t, add_special_tokens=False) for t in texts(question))

    def after(tokens: list[int]) -> torch.Tensor:
        """Log-probabilities behind question and tokens, all but the prompt read one by one."""
        cache = BudgetCache(model, policy)
        parts = [opening, later] if spec.question_later else [opening + later]
        for part in [*parts, *([token] for token in tokens)]:
            logits = model(torch.tensor([part]), past_key_values=cache, use_cache=True).logits
        return logits[0, -1].float().log_softmax(-1)

    written: list[int] = []
    while len(written) < spec.answer_tokens:
        token = int(after(written).argmax())
        if token == tokenizer.eos_token_id:
            break
        written.append(token)
    answers = [tokenizer.encode(answer, add_special_tokens=False) for answer in question.answers]
    nats = [-sum(float(after(a[:i])[t]) for i, t in enumerate(a)) for a in answers]
    best = min(range(len(answers)), key=lambda i: nats[i] / len(answers[i]))
    return tokenizer.decode(written).strip(), nats[best], len(answers[best])


@pytest.mark.parametrize("spec", [LATER, AT_ONCE], ids=["later", "at once"])
@pytest.mark.parametrize("policy", [Full(), H2O(24), StreamingLLM(0.2)], ids=lambda policy: policy.name)
def test_answers_are_those_of_a_plain_loop(policy: CachePolicy, spec: AskingSpec) -> None:
    model, tokenizer = chat_base().model, chat_base().tokenizer
    rows = answer_questions(
        model, tokenizer, QUESTIONS, lambda: BudgetCache(model, policy), spec, progress=False
    )
    for row, question in zip(rows, QUESTIONS, strict=True):
        written, nats, tokens = plainly(question, policy, spec)
        assert (row["question"], row["written"], row["answer_tokens"]) == (question.id, written, tokens)
        assert_close(row["answer_nats"], nats, atol=1e-3)
        assert_close(row["nats_per_token"], nats / tokens, atol=1e-3)
        assert row["f1"] == answer_f1(written, question.answers)
        assert row["exact"] is exact_match(written, question.answers)
        assert row["document_tokens"] == len(tokenizer.encode(texts(question)[0], add_special_tokens=False))


def test_a_small_cache_costs_nats_where_the_document_is_needed() -> None:
    """Else the policies above might all see the same."""
    nats = {policy.name: plainly(QUESTIONS[1], policy, LATER)[1] for policy in (Full(), StreamingLLM(8))}
    assert nats["streaming"] > nats["full"] + 0.5


def test_the_rows_of_a_policy_are_read_through_its_cache(tmp_path: Path) -> None:
    policies: dict[str, CachePolicy] = {"full": Full(), "streaming": StreamingLLM(8)}
    asked = QUESTIONS[1]
    ask = partial(answer_table, chat_base, {}, [asked], runs=tmp_path, progress=False)
    rows = ask(list(policies.values()), LATER).set_index("policy").answer_nats
    for name, policy in policies.items():
        assert_close(rows[name], plainly(asked, policy, LATER)[1], atol=1e-3)


def test_rows_are_remembered_by_model_questions_and_policy(tmp_path: Path) -> None:
    loads = []

    def load() -> LoadedModel:
        loads.append(1)
        return chat_base()

    def table(name: str, questions: list[DocumentQuestion], *policies: CachePolicy) -> Any:
        return answer_table(
            load, {"base": name}, questions, policies, LATER, runs=tmp_path, used=used, progress=False
        )

    used: list[Path] = []
    first = table("a", QUESTIONS, Full(), H2O(0.5))
    assert first[["question", "policy", "budget"]].values.tolist() == [
        ["first", "full", 1.0],
        ["second", "full", 1.0],
        ["first", "h2o", 0.5],
        ["second", "h2o", 0.5],
    ]
    assert (len(loads), len(set(used))) == (1, 2)
    again = table("a", QUESTIONS, H2O(0.5))
    assert len(loads) == 1 and again.written.tolist() == first.written.tolist()[2:]
    table("a", QUESTIONS[:1], H2O(0.5))
    assert len(loads) == 2


@pytest.mark.parametrize(
    ("written", "answers", "exact", "f1"),
    [
        ("The Cat!", ["a cat"], True, 1.0),
        ("the black cat sat", ["cat", "black dog"], False, 0.5),
        ("cat", ["a black cat"], False, 2 / 3),
        ("", ["cat"], False, 0.0),
    ],
)
def test_scores_are_squads(written: str, answers: list[str], exact: bool, f1: float) -> None:
    assert exact_match(written, answers) is exact
    assert_close(answer_f1(written, answers), f1, atol=1e-12)


def test_what_cannot_be_asked_is_named_before_any_reading(tmp_path: Path) -> None:
    model, tokenizer = chat_base().model, chat_base().tokenizer

    def ask(questions: list[DocumentQuestion]) -> None:
        answer_questions(model, tokenizer, questions, lambda: BudgetCache(model, Full()), progress=False)

    endless = DocumentQuestion("endless", LONG_TEXT * 3, "Why?", ("So.",))
    with pytest.raises(ValueError, match=r"question 'endless' takes \d+ tokens .* was\s+trained for 512"):
        ask([QUESTIONS[0], endless])
    with pytest.raises(ValueError, match="questions: expected at least one"):
        ask([])
    with pytest.raises(ValueError, match=r"question 'choice': of the answer 'A' nothing is left to compare"):
        ask([QUESTIONS[0], DocumentQuestion("choice", PAGE, "Which?", ("(B)", "A"))])
    for prompt in ("{document}", "{question} {document}", "{document} {question} {question}"):
        with pytest.raises(ValueError, match=r"prompt=.*expected text with \{document\} and"):
            AskingSpec(prompt=prompt)


def test_questions_are_read_from_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    good = {"id": "1", "context": "d", "question": "q", "answers": ["yes", "b"], "licence": "CC0"}
    path.write_text(json.dumps(good))
    assert read_questions(path) == [DocumentQuestion("1", "d", "q", ("yes", "b"))]
    for bad, words in (
        (good | {"answers": []}, "'answers' is"),
        (good | {"answers": ["yes", " "]}, "'answers' is"),
        (good | {"answers": ["yes", "A"]}, "of the answer 'A' nothing is left to compare"),
        (good | {"answers": ["The."]}, "of the answer 'The.' nothing is left to compare"),
        (good | {"question": 3}, "expected texts in"),
        (good | {"context": "d \ud83d"}, "'context' holds"),
        (good | {"answers": ["yes", "\ud83d"]}, "'answers' holds"),
    ):
        path.write_text(json.dumps(good) + "\n" + json.dumps(bad))
        with pytest.raises(ValueError, match=f"questions.jsonl.*2.*{words}"):
            read_questions(path)
