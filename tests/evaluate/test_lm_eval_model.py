"""lm-evaluation-harness through a bounded cache: against its own model, and against a hand loop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinklora.cache.policies import H2O, parse_budget
from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.evaluate.openbookqa import answers, openbookqa_task
from sinklora.hf.budget_cache import BudgetCache

BASE = "data/base"
OPTIONS: dict[str, Any] = {"device": "cpu", "dtype": "float32", "max_length": 256}
TEXTS = [
    ("def add(first, second):\n    return", " first + second"),
    ("def add(first, second):\n    return", " second"),
    ("import numpy as", " np"),
    (
        "The pass key is 40213. Remember it. 40213 is the pass key. What is the pass key? The pass key is",
        " 40213",
    ),
]
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


def requests(model: Any) -> list[tuple[Any, list[int], list[int]]]:
    return [((c, t), *model._encode_pair(c, t)) for c, t in TEXTS]


@pytest.mark.parametrize(
    "cache", [{"kv": "full"}, {"kv": "h2o", "budget": 200}, {"kv": "local", "budget": "200"}], ids=str
)
def test_with_everything_kept_scores_are_the_harnesss_own(cache: dict[str, Any]) -> None:
    from lm_eval.models.huggingface import HFLM

    truth = HFLM(pretrained=BASE, backend="causal", **OPTIONS)
    expected = truth._loglikelihood_tokens(requests(truth), disable_tqdm=True)
    model = LMEvalModel(BASE, **cache, **OPTIONS)
    found = model._loglikelihood_tokens(requests(model), disable_tqdm=True)
    for (mine, greedy), (theirs, theirs_greedy) in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-3) and greedy == theirs_greedy


def test_under_a_budget_scores_are_those_of_a_hand_loop() -> None:
    model = LMEvalModel(BASE, kv="h2o", budget=0.3, **OPTIONS)
    found = model._loglikelihood_tokens(requests(model), disable_tqdm=True)
    full = LMEvalModel(BASE, **OPTIONS)._loglikelihood_tokens(requests(model), disable_tqdm=True)
    for (mine, _), (_, context, continuation) in zip(found, requests(model), strict=True):
        cache, total = BudgetCache(model.model, H2O(0.3)), 0.0
        with torch.no_grad():
            logits = model.model(torch.tensor([context]), past_key_values=cache, use_cache=True).logits
            for token in continuation:
                total += float(logits[0, -1].log_softmax(-1)[token])
                logits = model.model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits
        assert mine == pytest.approx(total, abs=1e-4)
    assert found[3][0] < full[3][0] - 1  # the number has been evicted


def test_generation_goes_through_the_cache() -> None:
    from lm_eval.api.instance import Instance

    model = LMEvalModel(BASE, kv="h2o", budget=0.3, batch_size=2, **OPTIONS)
    prompts = [TEXTS[0][0], TEXTS[3][0]]
    asked = [
        Instance("generate_until", {}, (prompt, {"until": ["\n\n"], "max_gen_toks": 6}), index)
        for index, prompt in enumerate(prompts)
    ]
    written = model.generate_until(asked, disable_tqdm=True)
    network = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    for prompt, text in zip(prompts, written, strict=True):
        ids = torch.tensor([model.tok_encode(prompt)])
        made = network.generate(
            ids,
            past_key_values=BudgetCache(network, H2O(0.3)),
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=2,
        )
        expected = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).split("\n\n")[0]
        assert text == expected


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_choices_scored_together_are_each_scored_alone(rows: int) -> None:
    context = TEXTS[0][0]
    choices = [" first + second", " second", " x", " first * second - first"]
    model = LMEvalModel(BASE, kv="h2o", budget=0.5, batch_size=rows, **OPTIONS)
    asked: Any = [((context, choice), *model._encode_pair(context, choice)) for choice in choices]
    assert len({len(request[2]) for request in asked}) > 1
    together = model._loglikelihood_tokens(asked, disable_tqdm=True)
    for request, (score, greedy) in zip(asked, together, strict=True):
        [(alone, alone_greedy)] = model._loglikelihood_tokens([request], disable_tqdm=True)
        assert score == pytest.approx(alone, abs=1e-4) and greedy == alone_greedy


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
    path.write_text("")
    with pytest.raises(ValueError, match="no questions"):
        openbookqa_task(path)


def test_questions_are_never_shown_their_own_answers(
    questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = LMEvalModel(BASE, **OPTIONS)
    with pytest.raises(ValueError, match="few_shot=2: name train_files"):
        answers(model, openbookqa_task(questions), few_shot=2)
    with pytest.raises(SystemExit):
        main(["--tasks", "openbookqa", f"--data_files={questions}", "--num_fewshot", "2"])
    assert "name --train_files" in capsys.readouterr().err


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


@pytest.mark.parametrize("spelling", ["--tasks openbookqa --data_files", "-t=openbookqa --data_files="])
def test_the_command_line(questions: Path, spelling: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"pretrained={BASE},kv=h2o,budget=0.5,dtype=float32"
    *options, last = spelling.split(" ")
    options += [last + str(questions)] if last.endswith("=") else [last, str(questions)]
    main(["--model", "sinklora", "--model_args", model, "--device", "cpu", *options])
    assert "openbookqa_local" in capsys.readouterr().out


def test_local_questions_that_no_task_would_read_are_refused(
    questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "sinklora", "--tasks", "arc_easy,piqa", f"--data_files={questions}"])
    assert "not among --tasks" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--model", "sinklora", "--tasks", "openbookqa", f"--train_files={questions}"])
    assert "name both" in capsys.readouterr().err


def test_budgets_are_read_and_wrong_ones_named_before_a_model_is_loaded() -> None:
    assert (parse_budget("0.2"), parse_budget("64"), parse_budget(None)) == (0.2, 64, None)
    for given, words in (
        ({"kv": "h3o", "budget": 0.2}, "kv='h3o'"),
        ({"kv": "full", "budget": 0.2}, "budget=0.2"),
        ({"kv": "h2o"}, "needs a budget"),
        ({"kv": "h2o", "budget": "much"}, "budget='much'"),
    ):
        with pytest.raises(ValueError, match=words):
            LMEvalModel("there/is/no/such/model", **given)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        openbookqa_task("nowhere.jsonl")


def test_rolling_scores_need_a_budget_in_tokens() -> None:
    from lm_eval.api.instance import Instance

    text = [Instance("loglikelihood_rolling", {}, ("def add(first, second):\n    return first\n",), 0)]
    with pytest.raises(ValueError, match="in tokens"):
        LMEvalModel(BASE, kv="h2o", budget=0.3, **OPTIONS).loglikelihood_rolling(text, disable_tqdm=True)
    [full] = LMEvalModel(BASE, **OPTIONS).loglikelihood_rolling(text, disable_tqdm=True)
    [kept] = LMEvalModel(BASE, kv="h2o", budget=200, **OPTIONS).loglikelihood_rolling(text, disable_tqdm=True)
    [lost] = LMEvalModel(BASE, kv="local", budget=2, **OPTIONS).loglikelihood_rolling(text, disable_tqdm=True)
    assert kept == pytest.approx(full, abs=1e-3) and lost < full
