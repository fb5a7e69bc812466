"""Table 6 from generated sets: predictions of several models and caches, chance, the table's layout."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import AutoTokenizer

from sinklora.cache.h2o import H2O
from sinklora.evaluate.longbench.records import Prediction, Record
from sinklora.evaluate.longbench.tasks import SMALL
from sinklora.records.files import json_hash
from sinklora.records.provenance import current_provenance
from sinklora.records.runs import DamagedRunError, run_records
from sinklora.reproduction.longbench.study import (
    benchmark_table,
    chance,
    data_record,
    make_synthetic_sets,
    predictions,
    scores_table,
    verdict,
)
from sinklora.train.sources import CorpusSpec
from tiny_models import tiny_model


def prediction(text: str, answer: str, number: int) -> Prediction:
    return Prediction(text, (answer,), None, 10, str(number))


def test_chance_is_what_the_same_answers_score_for_other_records() -> None:
    # Two records, each answered rightly: half of the shuffles swap the answers, which scores 0.
    right = [prediction("alpha", "alpha", 0), prediction("beta", "beta", 1)]
    mean, high = chance("hotpotqa", right)
    assert 30 < mean < 70 and high == 100
    same = [prediction("alpha", "alpha", 0), prediction("alpha", "beta", 1)]
    assert chance("hotpotqa", same) == (50.0, 50.0)


def test_a_model_that_always_says_the_same_is_at_chance() -> None:
    made = [prediction("alpha", word, i) for i, word in enumerate(("alpha", "beta", "gamma", "delta"))]
    table = scores_table({"m": {"hotpotqa": made}})
    assert table.score.tolist() == [25.0] and table["at chance"].tolist() == ["yes"]
    # Two of four in place: as many or more in 7 of 24 shuffles.
    pairs = ("alpha", "alpha"), ("beta", "beta"), ("gamma", "delta"), ("delta", "gamma")
    some = [prediction(*pair, i) for i, pair in enumerate(pairs)]
    half = scores_table({"m": {"hotpotqa": some}})
    assert half.score.tolist() == [50.0] and half["at chance"].tolist() == ["yes"]
    words = [f"word{i}" for i in range(8)]
    knowing = scores_table({"m": {"hotpotqa": [prediction(w, w, i) for i, w in enumerate(words)]}})
    assert knowing["at chance"].tolist() == ["no"]
    assert "m: 1; 0.1 of all 1 would be by chance" in verdict(
        knowing, synthetic=True
    ) and "Not LongBench" in verdict(knowing, synthetic=True)


def test_synthetic_sets_are_predicted_by_every_model_and_cache(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    corpus = CorpusSpec("installed:", "test", 4_000, total_characters=1_500_000)
    sets = make_synthetic_sets(tokenizer, corpus, examples=2, tokens=700, seed=0)
    assert set(sets) == set(SMALL)
    load = partial(tiny_model, "llama-gqa", vocab_size=4096, max_position_embeddings=1024)
    ask = partial(
        predictions,
        [("tiny", {"seed": 0}, load)],
        tokenizer,
        sets,
        max_length=700,
        max_new_tokens=2,
        policies={"full": None, "H2O 20%": H2O(0.2)},
        runs=tmp_path,
        progress=False,
    )
    found = ask()
    assert list(found) == ["tiny", "tiny, H2O 20%"]
    assert all(len(made) == 2 for by_set in found.values() for made in by_set.values())
    files = {path: path.read_text() for path in tmp_path.rglob("*.jsonl")}
    assert len(files) == 2 * len(SMALL)
    used: list[Path] = []
    assert ask(used=used) == found
    assert {path: path.read_text() for path in files} == files
    assert used == sorted({path.parent for path in files}, key=used.index) and len(used) == 2
    commit = current_provenance()["commit"]
    assert [record["commit"] for record in run_records(used)] == [commit] * 2
    table = benchmark_table(scores_table(found))
    assert table.model.tolist() == list(found) and set(table["Data sets"]) == {"Small (generated)"}
    assert table.Avg[0] == pytest.approx(table.iloc[0, 3:].mean())


CHAT = "{% for m in messages %}<ask>{{ m['content'] }}</ask>{% endfor %}"


def listener(heard: list[Any]) -> Callable[[], nn.Module]:
    """Loads a tiny model that notes the prompts (token ids) it is given."""

    def load() -> nn.Module:
        model: Any = tiny_model("llama-gqa", vocab_size=4096, max_position_embeddings=1024)
        generate = model.generate

        def noted(**options: Any) -> Any:
            heard.append(options["input_ids"][0])
            return generate(**options)

        model.generate = noted
        return model

    return load


def test_a_chat_models_prompts_are_formatted_and_kept_apart(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    sets = {
        name: [Record("What?", "some words", ("it",), 2, name, "en", None, f"id {name}")]
        for name in ("qasper", "lcc")
    }
    heard: list[Any] = []
    ask = partial(
        predictions,
        [("tiny", {"seed": 0}, listener(heard))],
        tokenizer,
        sets,
        max_length=700,
        max_new_tokens=2,
        policies={"full": None},
        runs=tmp_path,
        progress=False,
    )
    with pytest.raises(ValueError, match="no chat template"):
        ask(chat=True)
    ask()
    [plain] = tmp_path.glob("longbench-*")
    # What predictions made before there was a choice are stored under.
    setting = {"model": {"seed": 0}, "cache": "None", "max_length": 700, "max_new_tokens": 2}
    records = {"qasper": ["id qasper"], "lcc": ["id lcc"]}
    assert plain.name == f"longbench-{json_hash({**setting, 'records': records})[:16]}"
    assert not any("<ask>" in tokenizer.decode(ids) for ids in heard)
    heard.clear()
    tokenizer.chat_template = CHAT
    ask(chat=True)
    asked = [tokenizer.decode(ids, skip_special_tokens=True) for ids in heard]
    assert asked[0].startswith("<ask>") and asked[0].endswith("</ask>")
    assert "<ask>" not in asked[1]  # code goes on where the prompt ends
    assert len(list(tmp_path.glob("longbench-*"))) == 2
    ask()
    ask(chat=True)
    assert len(heard) == 2


def two_records(context: str = "What?") -> dict[str, list[Record]]:
    """A data set of two records about a document."""
    made = [Record("Who?", context, ("it",), 2, "qasper", "en", None, f"id {n}") for n in range(2)]
    return {"qasper": made}


def test_predictions_are_known_by_the_code_that_made_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back, they say who made them; gone on with by other code, or made before that was kept: nobody."""
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    heard: list[Any] = []
    by: dict[str, Any] = {"commit": "first", "dirty": False, "changed_files": [], "time": "then"}
    monkeypatch.setattr("sinklora.reproduction.longbench.study.current_provenance", lambda: dict(by))
    ask = partial(
        predictions,
        [("tiny", {"seed": 0}, listener(heard))],
        tokenizer,
        two_records(),
        max_length=700,
        max_new_tokens=2,
        policies={"full": None},
        progress=False,
    )

    def commits(runs: Path) -> list[str | None]:
        used: list[Path] = []
        ask(runs=runs, used=used)
        return [record["commit"] for record in run_records(used)]

    whole, stopped, older = (tmp_path / name for name in ("whole", "stopped", "older"))
    assert commits(whole) == ["first"] and len(heard) == 2
    by["commit"] = "second"
    assert commits(whole) == ["first"] and len(heard) == 2, "nothing is made"

    [made] = whole.glob("longbench-*")
    shutil.copytree(made, stopped / made.name, ignore=shutil.ignore_patterns("finished.json"))
    file = stopped / made.name / "qasper.jsonl"
    file.write_text(file.read_text().splitlines(keepends=True)[0])
    by["commit"] = "first"
    assert commits(stopped) == ["first"] and len(heard) == 3, "it goes on"
    assert file.read_text() == (made / "qasper.jsonl").read_text()

    (stopped / made.name / "finished.json").unlink()
    by["commit"] = "second"
    assert commits(stopped) == [None], "by two states of the code"
    (older / made.name).mkdir(parents=True)
    shutil.copy(made / "qasper.jsonl", older / made.name)
    assert commits(older) == [None] and len(heard) == 3
    file.write_text("")
    with pytest.raises(DamagedRunError, match=r"qasper\.jsonl"):
        ask(runs=stopped)


def test_the_data_of_questions_are_known_by_their_contents() -> None:
    record = data_record(two_records())
    assert record["qasper"]["records"] == 2
    assert data_record(two_records()) == record != data_record(two_records("Why?"))
