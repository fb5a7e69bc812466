"""Questions about documents, answered through any cache: exact match, F1, nats of the right answer (Fig. 9).

A document is read once into a cache, then its question; from there the model writes greedily, and is asked
how likely it finds each right answer, each time on a copy of what the cache has kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import AfterValidator
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.answer_scores import answer_f1, check_comparable, exact_match
from sinklora.evaluate.pass_keys import CacheFactory
from sinklora.evaluate.read_prompt import ReadPrompt, end_tokens
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.cache_positions import trained_length
from sinklora.hf.device import input_device
from sinklora.hf.rope import forget_longest_input
from sinklora.hf.template_pieces import plain_tokens
from sinklora.pretrained.loading import LoadedModel
from sinklora.records.checks import Count, check_fields, one_of
from sinklora.records.files import json_hash
from sinklora.records.jsonl import json_lines
from sinklora.records.placed_fields import field_of, texts_of
from sinklora.records.runs import remember
from sinklora.train.chat_templates import TEMPLATE_NAMES
from sinklora.train.conversations import ConversationTemplate

PROMPT = "Read this document. Questions about it follow.\n\n{document}\n\n{question}"


@dataclass(frozen=True)
class DocumentQuestion:
    """A question about a document; any of `answers` is right."""

    id: str
    document: str
    question: str
    answers: tuple[str, ...]


def _both_places(prompt: str) -> str:
    head, found, rest = prompt.partition("{document}")
    if not found or "{question}" in head or rest.count("{question}") != 1 or "{document}" in rest:
        raise ValueError("text with {document} and, behind it, {question}")
    return prompt


@dataclass(frozen=True)
class AskingSpec:
    """How a question is asked and answered.

    `template`: a chat template by name, None for the tokenizer's own. `prompt`: what a user says, with
    {document} and {question}. `question_later`: the question is read after the document has been evicted, as
    in a conversation; else both at once, so that a cache knows what will be asked. `answer_tokens`: of a
    written answer, at most. Raises TypeError or ValueError naming the field.
    """

    template: Annotated[str, one_of(TEMPLATE_NAMES)] | None = None
    prompt: Annotated[str, AfterValidator(_both_places)] = PROMPT
    question_later: bool = True
    answer_tokens: Count = 32

    def __post_init__(self) -> None:
        check_fields(self)


ASKED = ("id", "context", "question")  # columns with text of a file of questions


def read_questions(path: str | Path) -> list[DocumentQuestion]:
    """The questions of a jsonl file with `id`, `context` (the document), `question`, `answers` (texts).

    Raises FileNotFoundError, or ValueError with file and line for what is no question, and for an answer that
    nothing can be compared with (`check_comparable`).
    """
    questions = []
    for place, fields in json_lines(Path(path)):
        if not all(isinstance(fields.get(name), str) and fields[name].strip() for name in ASKED):
            raise ValueError(f"{place}: expected texts in 'id', 'context' and 'question'")
        name, document, question = (field_of(fields, asked, str, place) for asked in ASKED)
        answers = texts_of(fields, "answers", place)
        check_comparable(answers, place)
        questions.append(DocumentQuestion(name, document, question, answers))
    if not questions:
        raise ValueError(f"{path}: holds no questions")
    return questions


@dataclass(frozen=True)
class _Asked:
    """Tokens of a question: up to and with the document, then up to the answer; and those of its answers."""

    opening: list[int]
    question: list[int]
    answers: list[list[int]]

    @property
    def length(self) -> int:
        return len(self.opening) + len(self.question)


def answer_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[DocumentQuestion],
    make_cache: CacheFactory,
    spec: AskingSpec = AskingSpec(),
    *,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """A row for each question: `question` (its id), `written`, `exact`, `f1` (0 to 1), `answer_nats` (of the
    right answer that is likeliest by token, without its end), its `answer_tokens`, `nats_per_token`,
    `document_tokens` (with what the template puts before it).

    Every document is read once. Raises ValueError, before any is, in training mode, for a question whose
    document, question and answer are longer than the model was trained for, and for an answer that nothing
    can be compared with.
    """
    template = ConversationTemplate(tokenizer, spec.template)
    asked = [_asked(template, question, spec) for question in questions]
    _check_asked(model, questions, asked, spec)
    ends = {*end_tokens(model), template.stop}
    rows = []
    for question, ids in zip(tqdm(questions, desc="questions", disable=not progress), asked, strict=True):
        read = _read(model, ids, make_cache(), spec)
        ids_written = read.greedy(spec.answer_tokens, ends)
        written = str(tokenizer.decode(ids_written, skip_special_tokens=True)).strip()
        nats = [(sum(losses), len(losses)) for losses in read.nats(ids.answers)]
        total, count = min(nats, key=lambda sum_and_count: sum_and_count[0] / sum_and_count[1])
        rows.append(
            {
                "question": question.id,
                "written": written,
                "exact": exact_match(written, question.answers),
                "f1": answer_f1(written, question.answers),
                "answer_nats": total,
                "answer_tokens": count,
                "nats_per_token": total / count,
                "document_tokens": len(ids.opening),
            }
        )
    return rows


def answer_table(
    load: Callable[[], LoadedModel],
    model_key: Mapping[str, Any],
    questions: Sequence[DocumentQuestion],
    policies: Sequence[CachePolicy],
    spec: AskingSpec,
    *,
    runs: Path,
    used: list[Path] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The rows of `answer_questions` under each policy, with a column `policy` (its name) and `budget`.

    Each policy's are remembered in `runs` (see `remember`) by `model_key`, which says what `load` gives; it
    is called once, where anything is left to measure.
    """
    loaded = cache(load)
    asked = json_hash([asdict(question) for question in questions])

    def rows_of(policy: CachePolicy) -> pd.DataFrame:
        def work() -> list[dict[str, Any]]:
            model, tokenizer = loaded().model, loaded().tokenizer
            make = lambda: BudgetCache(model, policy)  # noqa: E731
            return answer_questions(model, tokenizer, questions, make, spec, progress=progress)

        key = {
            "model": dict(model_key),
            "questions_sha256": asked,
            "asking": asdict(spec),
            "policy": policy_key(policy),
        }
        rows = pd.DataFrame(remember(key, work, runs=runs, prefix="answers", used=used))
        budget = policy.whole_budget if policy.bounded else 1.0
        return rows.assign(policy=policy.name, budget=budget)

    return pd.concat([rows_of(policy) for policy in policies], ignore_index=True)


def _asked(template: ConversationTemplate, question: DocumentQuestion, spec: AskingSpec) -> _Asked:
    before, blank, after = template.around_question()
    head, _, rest = spec.prompt.partition("{document}")
    between, _, tail = rest.partition("{question}")
    tokenizer = template.tokenizer
    opening = [*before, *plain_tokens(tokenizer, blank + head + question.document)]
    later = [*plain_tokens(tokenizer, between + question.question.strip() + tail), *after]
    return _Asked(opening, later, [template.first_answer(answer) for answer in question.answers])


def _check_asked(
    model: PreTrainedModel, questions: Sequence[DocumentQuestion], asked: Sequence[_Asked], spec: AskingSpec
) -> None:
    if model.training:
        raise ValueError("model: is in training mode, where a cache cannot be used; call model.eval()")
    if not questions:
        raise ValueError("questions: expected at least one")
    for question in questions:
        check_comparable(question.answers, f"question {question.id!r}")
    room = trained_length(model.config)
    for question, ids in zip(questions, asked, strict=True):
        needed = ids.length + max(spec.answer_tokens, *map(len, ids.answers))
        if room is not None and needed > room:
            raise ValueError(
                f"question {question.id!r} takes {needed} tokens with its document and answer, the model was "
                f"trained for {room}: leave it out, or extend the model"
            )


@torch.inference_mode()
def _read(model: PreTrainedModel, ids: _Asked, kept: Any, spec: AskingSpec) -> ReadPrompt:
    if not spec.question_later:
        return ReadPrompt(model, [*ids.opening, *ids.question], kept)
    forget_longest_input(model)
    opening = torch.tensor([ids.opening], device=input_device(model))
    model(opening, past_key_values=kept, use_cache=True, logits_to_keep=1)
    return ReadPrompt(model, ids.question, kept)
