"""OpenBookQA from local files: checked line by line, answered through a cache, no answers shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from sinklora import H2O
from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.evaluate.openbookqa import answers, openbookqa_task

BASE = "data/base"
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_length": 256}
QUESTIONS = [
    {
        "id": str(number),
        "question_stem": stem,
        "choices": {"text": ["import os", "banana", "grass", "x = 1"], "label": ["A", "B", "C", "D"]},
        "answerKey": key,
    }
    for number, (stem, key) in enumerate([("Python begins with", "A"), ("A number is", "D"), ("It is", "C")])
]
SHARED = Path("../shared/data/openbookqa/test.jsonl")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openbookqa") / "test.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


def test_a_task_from_local_files(questions: Path) -> None:
    for kv, budget in (("full", None), ("h2o", 0.5), (H2O(0.5), None)):
        model = LMEvalModel(BASE, kv=kv, budget=budget, **OPTIONS)  # type: ignore[arg-type]
        assert list(answers(model, openbookqa_task(questions))) == ["0", "1", "2"]
    # The one that the model finds likeliest, by hand.
    scores = [
        model._loglikelihood_tokens([(None, *model._encode_pair("Python begins with", f" {text}"))])[0][0]
        for text in QUESTIONS[0]["choices"]["text"]  # type: ignore[index]
    ]
    best = "ABCD"[scores.index(max(scores))]
    assert answers(model, openbookqa_task(questions))["0"] == (best == QUESTIONS[0]["answerKey"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answerKey": "E"}, "line 2: 'answerKey' is 'E'"),
        ({"question_stem": None}, "line 2: 'question_stem' is None"),
        ({"choices": {"text": ["a"], "label": ["A", "B"]}}, "line 2: 'choices' is"),
        ({"choices": None}, "line 2: 'choices' is None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_a_malformed_question_is_named_with_its_line(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(
        "".join(json.dumps(question) + "\n" for question in (QUESTIONS[0], QUESTIONS[1] | change))
    )
    with pytest.raises(ValueError, match=words):
        openbookqa_task(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        openbookqa_task("nowhere.jsonl")
    path.write_text("")
    with pytest.raises(ValueError, match="no questions"):
        openbookqa_task(path)


def test_questions_are_never_shown_their_own_answers(questions: Path) -> None:
    model = LMEvalModel(BASE, **OPTIONS)
    with pytest.raises(ValueError, match="few_shot=2: name train_files"):
        answers(model, openbookqa_task(questions), few_shot=2)


def test_shown_questions_come_before_each(questions: Path) -> None:
    model = LMEvalModel(BASE, kv="local", budget=200, **OPTIONS)
    seen: list[list[int]] = []
    read = model._read
    model._read = lambda ids: (seen.append(ids), read(ids))[1]  # type: ignore[func-returns-value, method-assign]
    answers(model, openbookqa_task(questions, questions), few_shot=2, limit=1)
    assert model.tok_decode(seen[0]).count("\n\n") == 2


@pytest.mark.skipif(not SHARED.is_file(), reason="OpenBookQA is not there")
def test_openbookqa_itself() -> None:
    model = LMEvalModel(BASE, kv="h2o", budget=0.5, **OPTIONS)
    assert len(answers(model, openbookqa_task(SHARED), limit=8)) == 8
