"""What notebook 06 measures on a pretrained model: all of its profiles are plans that can be carried out."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recipes import functions, write_corpus
from sinklora.reproduction.cache.real_model import RealModelPlan, compared, measure_real_model, plan_of
from sinklora.reproduction.cache.study import PERPLEXITY, QUESTIONS
from sinklora.reproduction.report.experiments import declared_parameters, load_experiments

NOTEBOOK = "06_kv_cache"
DECLARED = declared_parameters(Path("notebooks") / f"{NOTEBOOK}.ipynb")
[PROFILES] = [found.parameters for found in load_experiments() if found.notebook == NOTEBOOK]


def plan(**changes: Any) -> RealModelPlan:
    found = plan_of(DECLARED | changes)
    assert found is not None
    return found


TITLES = {"smollm2-135m": "SmolLM2-135M-Instruct (Q4_1)", "data/base": "embedded base"}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_a_plan(profile: str) -> None:
    given = DECLARED | PROFILES[profile]
    found = plan_of(given)
    if not given["real_base"]:
        assert found is None
    else:
        assert found is not None and found.title == TITLES[given["real_base"]]
        assert found.text.passages == given["real_passages"] and found.text.seed == given["seeds"][0]
        assert found.generation.settings == tuple(map(tuple, given["real_cost_settings"]))


def test_a_source_that_is_not_there_is_replaced_and_told() -> None:
    rows = pd.DataFrame({"measure": [PERPLEXITY] * 3 + ["facts"], "cluster": ["a", "a", "b", "0"]})
    assert plan().text_in_words(rows) == "2 documents of prose:, split test"
    missing = plan(real_source="dir:nowhere")
    assert (
        missing.text_in_words(rows)
        == "2 documents of prose:, split test (dir:nowhere is not on this machine)"
    )


def write_questions(file: Path) -> str:
    choices = '{"text": ["a", "b"], "label": ["A", "B"]}'
    file.write_text('{"question_stem": "x", "choices": ' + choices + ', "answerKey": "A"}\n')
    return str(file)


def test_questions_are_asked_where_their_file_is(tmp_path: Path) -> None:
    assert plan(real_questions="nowhere.jsonl").questions_in_words().startswith("Questions were left out")
    file = write_questions(tmp_path / "q.jsonl")
    asked = plan(real_questions=file, real_shown_questions=file)
    assert asked.questions is not None and asked.questions.limit == 250
    assert asked.questions_in_words() == "Questions: OpenBookQA, 10 shown before each, acc_norm."
    with pytest.raises(ValueError, match="few_shot=10"):
        plan(real_questions=file)


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(ValueError, match="fact_passages=0"):
        plan(real_fact_passages=0)


@pytest.mark.slow
def test_passages_and_questions_are_measured_at_their_own_budgets(tmp_path: Path) -> None:
    given = plan(
        real_base="data/base",
        real_source=write_corpus(tmp_path / "corpus", {"test": functions(2, 60)}),
        real_min_characters=1,
        real_prompt=60,
        real_scored=4,
        real_passages=2,
        real_fact_tokens=320,
        real_fact_passages=1,
        real_questions=write_questions(tmp_path / "q.jsonl"),
        real_few_shot=0,
    )
    rows = measure_real_model(given, [0.2], [0.5], runs=tmp_path / "runs", cache=tmp_path, progress=False)
    bounded = rows[rows.policy != "full"]
    assert set(bounded.policy) == set(compared(0.2))
    assert bounded[bounded.measure == PERPLEXITY].budget.unique().tolist() == [0.2]
    assert bounded[bounded.measure == QUESTIONS].budget.unique().tolist() == [0.5]
    assert set(rows.attrs["data"]) == {"documents", "questions"}
