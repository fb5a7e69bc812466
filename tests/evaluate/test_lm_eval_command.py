"""`sinklora eval`: our options and the harness's own on one command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval._cli import HarnessCLI
from typer.main import get_command
from typer.testing import CliRunner

from sinklora.cli import application
from sinklora.evaluate.lm_eval_command import harness_arguments

QUESTION = {
    "id": "0",
    "question_stem": "Python begins with",
    "choices": {"text": ["import os", "banana", "grass", "x = 1"], "label": ["A", "B", "C", "D"]},
    "answerKey": "A",
}
PAIRS = ["pretrained=p", "kv=h2o", "budget=20%", "dtype=float32"]
OURS = ["--pretrained", "data/base", "--kv", "h2o", "--budget", "50%"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openbookqa") / "questions.jsonl"
    path.write_text(json.dumps(QUESTION) + "\n" + json.dumps(QUESTION | {"id": "1", "answerKey": "D"}) + "\n")
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(
        application, ["eval", *map(str, arguments)], env={"COLUMNS": "300", "HF_HUB_OFFLINE": "1"}
    )


def test_it_runs_the_harness_on_local_files(questions: Path, tmp_path: Path) -> None:
    shots = ["--data_files", questions, "--train_files", questions, "-f", 1, "--limit", 1]
    where = ["--device", "cpu", "--output_path", tmp_path]
    done = run("--tasks", "openbookqa", *OURS, "-a", "dtype=float32", "prefill_chunk=16", *shots, *where)
    assert done.exit_code == 0, done.output
    assert "openbookqa_local" in done.stdout and "num_fewshot: 1" in done.stdout
    [file] = tmp_path.rglob("results*.json")
    config = json.loads(file.read_text())["config"]
    used = {"pretrained": "data/base", "kv": "h2o", "budget": "50%", "dtype": "float32", "prefill_chunk": 16}
    assert config["model"] == "sinklora" and config["limit"] == 1
    assert config["model_args"] == used


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "sinklora", "--model_args", *PAIRS, "--tasks", "a", "b"],
        ["-M=sinklora", "-a", ",".join(PAIRS), "-t=a,b"],
        ["--tasks", "a", "b", "--budget", "20%", "--model_args", *PAIRS[:2], PAIRS[3]],
        ["--kv", "h2o", "-a", *PAIRS[2:], "--pretrained", "p", "--tasks", "a", "b"],
        ["--pretrained=p", "--kv=h2o", "--budget=20%", "-a", '{"dtype": "float32"}', "--tasks", "a,b"],
    ],
    ids=["the harness's spelling", "short", "budget ours", "kv ours", "JSON"],
)
def test_the_harness_understands_every_spelling_alike(options: list[str], tmp_path: Path) -> None:
    command: Any = get_command(application)
    context = command.commands["eval"].make_context("eval", [*options, "--log_samples", "--limit", "3"])
    model = {name: value for name, value in context.params.items() if value is not None}
    passed = harness_arguments(model, None, None, context.args, tmp_path)
    read = HarnessCLI()._parser.parse_args(["run", *passed])
    assert (read.model, read.tasks, read.limit, read.log_samples) == ("sinklora", ["a", "b"], 3, True)
    assert read.model_args == {"pretrained": "p", "kv": "h2o", "budget": "20%", "dtype": "float32"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "arc_easy,piqa", "--data_files", "q.jsonl"], "not among --tasks ['arc_easy', 'piqa']"),
        (["--tasks", "openbookqa", "--train_files", "q.jsonl"], "name both"),
        (["--tasks", "openbookqa", "--data_files", "q.jsonl", "-f", "2"], "name --train_files"),
        (
            ["--tasks", "openbookqa", "--data_files", "nowhere.jsonl"],
            "data_files='nowhere.jsonl': no such file",
        ),
        (["--tasks", "openbookqa", "--model", "hf"], "--model hf: eval runs the model sinklora"),
        (["--tasks", "openbookqa", "--model_args", "kv=local"], "--kv h2o: is also among --model_args"),
        (["--tasks", "openbookqa", "-a", '{"budget": 3}'], "--budget 50%: is also among --model_args"),
        (
            ["--tasks", "openbookqa", "-a", '{"budget": x}'],
            """--model_args {"budget": x}: is no JSON object""",
        ),
        (["--config", "nowhere.yaml", "--tasks", "a"], "the harness says: Config file not found"),
    ],
)
def test_what_contradicts_itself_is_refused(options: list[str], words: str) -> None:
    refused = run(*OURS, *options)
    assert refused.exit_code == 2
    assert words in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tasks", "openbookqa"], "--pretrained: name the model"),
        (["--pretrained", "data/base", "--kv", "h3o"], "kv='h3o': expected one of "),
        (["--pretrained", "data/base", "--kv", "h2o", "--budget", "much"], "budget='much'"),
        (["--pretrained", "data/base", "--kv", "h2o", "--budget", "1.5"], "budget=1.5"),
        (["--pretrained", "data/base", "--kv", "h2o"], "kv='h2o' needs a budget"),
        (["--pretrained", "data/base", "--budget", "0.2"], "budget=0.2"),
    ],
)
def test_a_wrong_model_or_cache_is_refused_first(options: list[str], words: str) -> None:
    refused = run(*options)
    assert refused.exit_code == 2 and words in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_the_harness_refuses_options_that_it_does_not_know() -> None:
    assert run(*OURS, "--tasks", "openbookqa", "--limti", "3").exit_code == 2


def test_help_says_which_options_are_whose() -> None:
    shown = " ".join(run("--help").output.split())
    for word in (
        "--pretrained",
        "--peft",
        "--kv",
        "--budget",
        "--prefill_chunk",
        "--positions",
        "--data_files",
        "--train_files",
    ):
        assert word in shown
    for word in ("--tasks", "--limit", "--model_args", "lm_eval run --help", "20%"):
        assert word in shown


def test_values_with_commas_reach_the_harness_whole(tmp_path: Path) -> None:
    passed = harness_arguments({"pretrained": "a,b=c", "peft": "64"}, None, None, ["-a", "x=1"], tmp_path)
    read = HarnessCLI()._parser.parse_args(["run", *passed])
    assert read.model_args == {"x": 1, "pretrained": "a,b=c", "peft": "64"}
