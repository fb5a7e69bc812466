"""LongBench's files and predictions: prompts, records, runs that are killed and go on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from longbench_records import fields_of, write_records
from penalties import penalised
from sinklora import CachePolicy, Local
from sinklora.evaluate.longbench.commands import commands
from sinklora.evaluate.longbench.prediction_run import PredictionRun
from sinklora.evaluate.longbench.predictions import chat_format, predict, prompt_ids
from sinklora.evaluate.longbench.records import (
    Record,
    load_records,
    read_predictions,
    read_records,
)
from sinklora.evaluate.longbench.tasks import DATASETS, task_of
from sinklora.hf.budget_cache import BudgetCache
from sinklora.reproduction.base_model.study import train_tokenizer
from tiny_models import tiny_config, tiny_model

VOCABULARY = 300


def record(number: int, dataset: str = "qasper", context: str = "one two three") -> Record:
    return Record(f"What is {number}?", context, (f"it is {number}",), 3, dataset, "en", None, f"id{number}")


# --- prompts ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    prompts = [task_of(name).prompt("some words in a row", "what?") for name in DATASETS]
    return train_tokenizer(prompts, VOCABULARY)


def test_long_prompts_lose_their_middle(tokenizer: PreTrainedTokenizerFast) -> None:
    long = record(1, context="start " + "word " * 500 + "end")
    whole = prompt_ids(tokenizer, long, "qasper", 100_000)
    assert tokenizer.decode(whole, skip_special_tokens=True) == task_of("qasper").prompt(
        long.context, long.input
    )
    kept = prompt_ids(tokenizer, long, "qasper", 200)
    assert 190 <= len(kept) <= 202  # at the seam tokens may part or join
    assert kept[:90] == whole[:90] and kept[-90:] == whole[-90:]
    assert kept.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("adds_first", [True, False])
def test_the_first_token_stands_once_in_a_chat(adds_first: bool) -> None:
    tokenizer = train_tokenizer(["some words in a row, what?"], VOCABULARY)
    first = tokenizer.bos_token
    tokenizer.chat_template = f"{first}{{% for m in messages %}}[{{{{ m['content'] }}}}]{{% endfor %}}"
    if not adds_first:  # as models whose template begins every turn with it have it
        tokenizer.backend_tokenizer.post_processor = None
    ids = tokenizer(chat_format(tokenizer)("what?"))["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "[what?]"


def test_a_template_that_writes_the_date_writes_the_same_one_every_day() -> None:
    tokenizer = train_tokenizer(["some words in a row, what?"], VOCABULARY)
    tokenizer.chat_template = "\n{{ strftime_now('%Y') }}[{{ messages[0]['content'] }}]"
    assert chat_format(tokenizer)("what?") == "\n26 Jul 2024[what?]"
    tokenizer.chat_template = "\n[{{ messages[0]['content'] }}]"
    assert chat_format(tokenizer)("what?") == "\n[what?]"


@pytest.mark.parametrize("dataset", DATASETS)
def test_few_shot_and_code_have_no_chat_format(dataset: str, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = prompt_ids(tokenizer, record(1, dataset), dataset, 64, lambda prompt: f"<<{prompt}>>")
    text = tokenizer.decode(ids, skip_special_tokens=True)
    formatted = text.startswith("<<") and text.endswith(">>")
    assert formatted == (DATASETS[dataset].category not in ("Few-shot Learning", "Code Completion"))


# --- records ------------------------------------------------------------------------------------------------


def test_records_come_back_as_written(tmp_path: Path) -> None:
    records = [record(1), Record("问", "文", ("答", "b"), 1, "lsht", "zh", ("答", "b"), "x")]
    write_records(tmp_path / "lsht.jsonl", records)
    assert load_records(tmp_path, "lsht") == records


def test_the_question_may_be_called_so(tmp_path: Path) -> None:
    fields = fields_of(record(1))
    fields["question"] = fields.pop("input")
    (tmp_path / "a.jsonl").write_text(json.dumps(fields))
    assert read_records(tmp_path / "a.jsonl") == [record(1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": None}, "'context' is None, expected str"),
        ({"answers": "yes"}, "'answers' is 'yes', expected list"),
        ({"answers": []}, "'answers' is .*at least one string"),
        ({"answers": [1]}, "'answers' is .*at least one string"),
        ({"length": "3"}, "'length' is '3', expected int"),
        ({"length": True}, "'length' is True, expected int"),
        ({"all_classes": "a"}, "'all_classes' is 'a', expected list"),
        ({"_id": ...}, "no '_id'; there are 'input'"),
    ],
)
def test_malformed_records_are_reported_with_their_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    changed = {name: value for name, value in (fields_of(record(2)) | change).items() if value is not ...}
    path = tmp_path / "qasper.jsonl"
    path.write_text(f"{json.dumps(fields_of(record(1)))}\n{json.dumps(changed)}\n")
    with pytest.raises(ValueError, match=f"qasper.jsonl, line 2: {message}"):
        read_records(path)


@pytest.mark.parametrize("line", ["", "{", "[1]", '{"input": "\xff"}'])
def test_lines_that_are_no_objects_are_reported(tmp_path: Path, line: str) -> None:
    path = tmp_path / "qasper.jsonl"
    path.write_text(f"{json.dumps(fields_of(record(1)))}\n{line}\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"line 2: (not a line of JSON|a list)"):
        read_records(path)


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"source='\./nowhere'"):
        load_records("./nowhere", "lcc")


def test_a_source_that_the_hub_does_not_give_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(FileNotFoundError, match="'data/longbench' is neither a folder"):
        load_records("data/longbench", "lcc")


# --- predictions --------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("llama-gqa", vocab_size=VOCABULARY)


Predict = Callable[..., Any]


@pytest.fixture
def run(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Predict:
    def call(records: list[Record], out: Path, **options: Any) -> Any:
        settings = {"max_length": 40, "max_new_tokens": 4, "progress": False} | options
        return predict(model, tokenizer, records, records[0].dataset, out=out, **settings)

    return call


RECORDS = [record(number) for number in range(5)]


class Killed(BaseException):
    """What stops a run from outside."""


def count_generations(
    patch: pytest.MonkeyPatch, model: PreTrainedModel, stop_at: int | None = None
) -> list[dict[str, Any]]:
    """Let `model` generate as before, note what it is called with, and die at call `stop_at`."""
    calls: list[dict[str, Any]] = []
    generate = model.generate

    def counted(**options: Any) -> Any:
        if len(calls) == stop_at:
            raise Killed
        calls.append(options)
        return generate(**options)

    patch.setattr(model, "generate", counted)
    return calls


def test_predictions_are_greedy_and_in_the_official_format(
    tmp_path: Path, run: Predict, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.train()
    with penalised(model):
        made = run(RECORDS[:1], tmp_path / "new" / "qasper.jsonl", max_new_tokens=24)
    assert model.training
    model.eval()
    ids = prompt_ids(tokenizer, RECORDS[0], "qasper", 40)
    start = len(ids)
    while len(ids) < start + 24 and ids[-1] != tokenizer.eos_token_id:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert made[0].pred == tokenizer.decode(ids[start:], skip_special_tokens=True)
    line = json.loads((tmp_path / "new" / "qasper.jsonl").read_text(encoding="utf-8"))
    assert line == {
        "pred": made[0].pred,
        "answers": ["it is 0"],
        "all_classes": None,
        "length": 3,
        "_id": "id0",
    }


@pytest.mark.parametrize("torn", [0, 1, 5, 30])
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, run: Predict, model: PreTrainedModel, torn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(RECORDS, tmp_path / "whole.jsonl")
    assert len({prediction.pred for prediction in whole}) > 1
    out = tmp_path / "qasper.jsonl"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        count_generations(patch, model, stop_at=3)
        run(RECORDS, out)
    content = out.read_bytes()
    assert content.count(b"\n") == 3
    out.write_bytes(content[: len(content) - torn])
    with monkeypatch.context() as patch:
        calls = count_generations(patch, model)
        assert run(RECORDS, out) == whole
    # Without its newline the third line is whole; with less it is made again.
    assert len(calls) == (2 if torn <= 1 else 3)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_line_torn_within_a_letter_is_repaired(tmp_path: Path, run: Predict) -> None:
    out = tmp_path / "qasper.jsonl"
    run(RECORDS[:2], out)
    content = out.read_bytes()
    out.write_bytes(content + '{"pred": "é'.encode()[:-1])
    assert [p.id for p in run(RECORDS[:2], out)] == ["id0", "id1"]
    assert out.read_bytes() == content


@pytest.mark.parametrize(("line", "end"), [(1, "\n"), (2, "\n"), (3, "\n")])
def test_damage_elsewhere_is_refused_with_its_line(tmp_path: Path, run: Predict, line: int, end: str) -> None:
    out = tmp_path / "qasper.jsonl"
    run(RECORDS[:3], out)
    lines = out.read_text(encoding="utf-8").splitlines()
    lines[line - 1] = lines[line - 1][:20]
    damaged = "\n".join(lines) + end
    out.write_text(damaged, encoding="utf-8")
    with pytest.raises(ValueError, match=f"qasper.jsonl, line {line}: not a line of JSON"):
        run(RECORDS, out)
    assert out.read_text(encoding="utf-8") == damaged


def test_a_file_of_something_else_is_left_alone(tmp_path: Path, run: Predict) -> None:
    out = tmp_path / "notes.txt"
    out.write_text("remember the milk")
    with pytest.raises(ValueError, match="line 1"):
        run(RECORDS, out)
    assert out.read_text() == "remember the milk"


def test_predictions_of_other_records_are_refused(tmp_path: Path, run: Predict) -> None:
    out = tmp_path / "qasper.jsonl"
    run(RECORDS[:3], out)
    content = out.read_bytes()
    with pytest.raises(
        ValueError, match=r"line 2: the prediction is for _id 'id1', the record there is 'id4'"
    ):
        run([RECORDS[0], RECORDS[4], RECORDS[2]], out)
    with pytest.raises(ValueError, match="3 predictions for 2 records"):
        run(RECORDS[:2], out)
    assert out.read_bytes() == content


def test_a_limit_takes_the_first_and_can_grow(
    tmp_path: Path, run: Predict, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "qasper.jsonl"
    calls = count_generations(monkeypatch, model)
    assert [p.id for p in run(RECORDS, out, limit=2)] == ["id0", "id1"]
    assert [p.id for p in run(RECORDS, out, limit=4)] == ["id0", "id1", "id2", "id3"]
    assert [p.id for p in run(RECORDS, out, limit=1)] == ["id0"]
    assert len(calls) == 4 and len(read_predictions(out)) == 4


def test_every_record_gets_a_fresh_cache(tmp_path: Path, run: Predict) -> None:
    caches: list[DynamicCache] = []

    def factory() -> DynamicCache:
        caches.append(DynamicCache())
        return caches[-1]

    plain = run(RECORDS[:3], tmp_path / "plain.jsonl")
    assert run(RECORDS[:3], tmp_path / "cached.jsonl", cache_factory=factory) == plain
    assert len(caches) == 3 and all(cache.get_seq_length() >= 35 for cache in caches)


def test_samsum_ends_at_a_new_line_and_others_do_not(
    tmp_path: Path,
    run: Predict,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = count_generations(monkeypatch, model)
    for dataset in ("samsum", "trec"):
        run([record(1, dataset)], tmp_path / f"{dataset}.jsonl")
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert calls[0]["eos_token_id"] == [tokenizer.eos_token_id, *newline]
    assert calls[0]["min_new_tokens"] == 1
    assert "eos_token_id" not in calls[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length=1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_bad_numbers_are_named(tmp_path: Path, run: Predict, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(RECORDS, tmp_path / "qasper.jsonl", **options)


def test_records_of_another_data_set_are_refused(tmp_path: Path, run: Predict) -> None:
    with pytest.raises(ValueError, match="record 'id7' is of 'lcc'"):
        run([*RECORDS, record(7, "lcc")], tmp_path / "qasper.jsonl")
    assert not (tmp_path / "qasper.jsonl").exists()


# --- command line -------------------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def test_predict_and_score_from_the_command_line(
    tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    home, data, out = (tmp_path / name for name in ("model", "data", "out"))
    model.save_pretrained(home)
    tokenizer.save_pretrained(home)
    data.mkdir()
    records = [record(n, "hotpotqa") for n in range(3)]
    write_records(data / "hotpotqa.jsonl", records)
    common = ("predict", "--model", home, "--data", data, "--out", out, "--limit", 2, "--kv", "local")
    assert command(*common, "--max-length", 40, "--budget", "20%").exit_code == 0
    written = read_predictions(out / "hotpotqa.jsonl")
    assert [prediction.pred for prediction in written] == [
        answered(model, tokenizer, one, Local(0.2)) for one in records[:2]
    ]
    assert command("score", out).exit_code == 0
    assert json.loads((out / "settings.json").read_text())["budget"] == 0.2
    refused = command(*common, "--max-length", 50, "--budget", "0.2")
    assert refused.exit_code == 2 and "settings.json" in refused.output
    assert "budget='x'" in command(*common, "--max-length", 40, "--budget", "x").output
    out.rename(tmp_path / "before")
    assert command(*common, "--max-length", 40, "--budget", "8").exit_code == 0
    assert json.loads((out / "settings.json").read_text())["budget"] == 8
    assert read_predictions(out / "hotpotqa.jsonl")[1].pred == answered(
        model, tokenizer, records[1], Local(8)
    )


def test_a_folder_is_continued_in_its_own_precision(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That of a packaged model is the machine's choice; folders of before did not say it."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    write_records(data / "hotpotqa.jsonl", [record(0, "hotpotqa")])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    module = "sinklora.evaluate.longbench.prediction_run"
    monkeypatch.setattr(f"{module}.packaged_model", lambda name: object())
    run = PredictionRun(str(tmp_path / "model"), str(data), out, max_length=40)
    run.write()
    settings = json.loads((out / "settings.json").read_text())
    run.write()
    monkeypatch.setattr(f"{module}.dtype_of", lambda *_: torch.bfloat16)
    with pytest.raises(ValueError, match="use another folder"):
        run.write()
    del settings["dtype"]
    (out / "settings.json").write_text(json.dumps(settings))
    run.write()


def answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: Record, policy: CachePolicy
) -> str:
    """What `generate` writes after a record's prompt through a cache of its own."""
    ids = torch.tensor([prompt_ids(tokenizer, asked, "hotpotqa", 40)])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=BudgetCache(model, policy),
        max_new_tokens=task_of("hotpotqa").max_new_tokens,
        do_sample=False,
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dataset", "qasperr"), "dataset='qasperr'"),
        (("--dataset", "qasper", "--dataset", "lcc"), "lcc.jsonl"),
        (("--dataset", "musique"), "musique.jsonl, line 2: no 'context'"),
        (("--dataset", "trec"), "record 'id1' is of 'qasper'"),
        (("--dataset", "passage_retrieval_en"), "record 1: 'answers' has 'it is 1'"),
        (("--kv", "h3o", "--budget", "0.2"), "kv='h3o'"),
        (("--kv", "h2o"), "kv='h2o' needs a budget"),
        (("--kv", "h2o", "--budget", "1.5"), "budget=1.5"),
        (("--kv", "h2o", "--budget", "nan"), "budget=nan"),
        (("--kv", "full", "--budget", "0.2"), "budget=0.2: the full cache has none"),
        (("--limit", "0"), "limit=0"),
        (("--chat",), "no chat template"),
        (("--model", "no/such/model/there"), "model='no/such/model/there': no model there"),
    ],
)
def test_a_wrong_request_is_refused_before_the_model_is_loaded(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, arguments: tuple[str, ...], message: str
) -> None:
    home, data, out = (tmp_path / name for name in ("model", "data", "out"))
    tokenizer.save_pretrained(home)
    tiny_config("llama-gqa", vocab_size=VOCABULARY).save_pretrained(home)  # no weights: loading would say so
    data.mkdir()
    write_records(data / "qasper.jsonl", [record(1)])
    write_records(data / "trec.jsonl", [record(1)])
    write_records(data / "passage_retrieval_en.jsonl", [record(1, "passage_retrieval_en")])
    (data / "musique.jsonl").write_text(json.dumps(fields_of(record(1, "musique"))) + '\n{"input": "x"}\n')
    common = ["predict", "--model", home, "--data", data, "--out", out, "--max-length", 40]
    asked = () if "--dataset" in arguments else ("--dataset", "qasper")
    result = command(*common, *asked, *arguments)
    assert result.exit_code == 2 and message in result.output, result.output
    assert not out.exists()


def test_a_folder_of_other_settings_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "qasper.jsonl").write_text(json.dumps(fields_of(record(1))))
    (tmp_path / "settings.json").write_text('{"model": "another"}')
    common = ("predict", "--model", tmp_path / "none", "--data", tmp_path, "--out", tmp_path)
    result = command(*common, "--max-length", 40)
    assert result.exit_code == 2 and "use another folder" in result.output
