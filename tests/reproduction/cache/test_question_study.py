"""Multiple-choice questions under a budget: how they are made, and that they are asked once."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from sinklora.cache.h2o import H2O
from sinklora.cache.novelty import Novelty
from sinklora.cache.sliding_window import Local
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.reproduction.cache.figures import budget_figure
from sinklora.reproduction.cache.question_study import (
    QuestionStudy,
    answer_questions,
    next_line_questions,
    question_file,
    with_answers,
    write_next_line_questions,
)
from sinklora.reproduction.cache.study import QUESTIONS, CacheStudy
from sinklora.reproduction.cache.tables import duels, summary
from sinklora.train.sources import CorpusSpec

BASE = "data/base"


def source(number: int) -> str:
    functions = [
        f"def function_{number}_{i}(first, second):\n    value_{number}_{i} = first * {i}\n"
        f"    answer_to_all = second\n    return value_{number}_{i} + answer_to_all\n"
        for i in range(30)
    ]
    return "\n\n".join(functions)


def make(documents: list[str], **changes: Any) -> list[dict[str, Any]]:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    given = {"questions": 4, "tokens": 80, "seed": 0} | changes
    return next_line_questions(documents, tokenizer, **given)


def test_the_answer_is_the_next_line_and_no_other_choice_was_seen() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    documents = [source(number) for number in range(12)]
    found = make(documents)
    assert len(found) == 4 and len({question["id"] for question in found}) == 4
    for question in found:
        stem, choices = question["question_stem"], question["choices"]["text"]
        assert question["choices"]["label"] == list("ABCD") and len(set(choices)) == 4
        answer = choices["ABCD".index(question["answerKey"])]
        [text] = [text for text in documents if f"{stem} {answer}\n" in text]
        before, after = text.split(f"{stem} {answer}\n")
        assert 40 <= len(tokenizer(stem)["input_ids"]) <= 80
        for wrong in set(choices) - {answer}:
            assert f"    {wrong}\n" in after + "\n" and wrong not in before + stem


def test_questions_come_from_the_seed() -> None:
    documents = [source(number) for number in range(12)]
    assert make(documents) == make(documents)
    assert make(documents) != make(documents, seed=1)
    with pytest.raises(ValueError, match="questions=13"):
        make(documents, questions=13)
    with pytest.raises(ValueError, match="only 0 found"):
        make(["x = 1\n"] * 12)


def test_a_study_asks_once_and_joins_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "test"
    folder.mkdir(parents=True)
    for number in range(9):
        (folder / f"{number}.txt").write_text(source(number))
    corpus = CorpusSpec(f"dir:{tmp_path / 'corpus'}", "test")
    file = write_next_line_questions(corpus, BASE, questions=3, tokens=60, seed=0, folder=tmp_path / "runs")
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ["0-0", "0-1", "0-2"]
    chosen = {"h2o": [H2O(0.2)], "local": [Local(0.2)], "streaming": [StreamingLLM(0.5)]}
    rows = answer_questions(QuestionStudy(BASE, str(file)), chosen, runs=tmp_path / "runs")
    assert len(rows) == 4 * 3 and set(rows.measure) == {QUESTIONS} and rows.value.isin([0.0, 1.0]).all()
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/finished.json")}
    assert len(written) == 4
    again = answer_questions(QuestionStudy(BASE, str(file)), chosen, runs=tmp_path / "runs")
    assert again.equals(rows) and rows.attrs["data"] == again.attrs["data"]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/finished.json")} == written
    assert summary(rows).chance.unique().tolist() == [0.25]


def test_questions_are_a_panel_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    corpus = [source(number) for number in range(9)]
    file.write_text("".join(json.dumps(question) + "\n" for question in make(corpus, tokens=60)))
    policies = {"h2o": H2O(0.3), "local": Local(0.3), "streaming": StreamingLLM(0.3), "novelty": Novelty(0.3)}
    study = QuestionStudy(BASE, str(file), limit=2)
    rows = answer_questions(study, {n: [p] for n, p in policies.items()}, runs=tmp_path)
    [axis] = budget_figure(rows).axes
    assert axis.get_title() == "questions (n = 2 questions)"
    assert duels(rows).measure.tolist() == [QUESTIONS]


def test_questions_that_cannot_be_asked_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="few_shot=1"):
        QuestionStudy(BASE, str(tmp_path / "q.jsonl"), few_shot=1)
    with pytest.raises(ValueError, match="shown='shown"):
        QuestionStudy(BASE, None, shown="shown.jsonl")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        QuestionStudy(BASE, "nowhere.jsonl")


def test_a_name_stands_for_a_file_or_for_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "test"
    folder.mkdir(parents=True)
    for number in range(9):
        (folder / f"{number}.txt").write_text(source(number) + source(number + 100))
    study = CacheStudy(BASE, CorpusSpec(f"dir:{tmp_path / 'corpus'}", "test", 9_999), seeds=(7, 8))
    make_file = partial(question_file, study=study, questions=2, tokens=60, folder=tmp_path)
    assert make_file("openbookqa") is None and make_file("mine.jsonl") == "mine.jsonl"
    assert 4_000 <= len(2 * source(0)) < 9_999, "shorter files than the study's do for questions"
    made = Path(make_file("next-line") or "")
    assert [json.loads(line)["id"] for line in made.read_text().splitlines()] == ["7-0", "7-1"]


def test_answers_join_what_was_measured_on_documents() -> None:
    rows, answered = pd.DataFrame({"value": [1.0]}), pd.DataFrame({"value": [0.0], "item": ["a"]})
    rows.attrs = {"data": {"sha256": "d"}, "runs": [{"run": 1}]}
    answered.attrs = {"data": {"questions": "q"}, "runs": [{"run": 2}]}
    both, alone = with_answers(rows, answered), with_answers(rows, None)
    assert both.value.tolist() == [1.0, 0.0]
    assert both.attrs == {
        "data": {"documents": {"sha256": "d"}, "questions": {"questions": "q"}},
        "runs": [{"run": 1}, {"run": 2}],
    }
    assert alone.attrs == {"data": {"documents": {"sha256": "d"}}, "runs": [{"run": 1}]}
