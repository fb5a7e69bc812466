"""The pass-key study: what it asks, and that it is measured once."""

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from pass_keys_by_hand import pass_key_rows
from recipes import recipe_of
from sinklora.cache.sliding_window import Local
from sinklora.evaluate.statistics import Accuracy
from sinklora.reproduction.model_under_test import ModelUnderTest
from sinklora.reproduction.names import BASE, LABELS, UNTRAINED
from sinklora.reproduction.retrieval import study as retrieval_study
from sinklora.reproduction.retrieval.figures import KeysPanel, depth_figure, retrieval_figure
from sinklora.reproduction.retrieval.study import RetrievalStudy, measure, models_under_test
from sinklora.reproduction.retrieval.tables import accuracies, failures, only_interpolated, table, topic_table
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec

HAND = pass_key_rows(
    {
        BASE: {512: [1] * 10, 1024: [0] * 10, 2048: [0] * 10, 4096: [0] * 10},
        "full": {512: [1] * 10, 1024: [1] * 10, 2048: [1] * 5 + [0] * 5, 4096: [0] * 10},
        "sf": {512: [1] * 10, 1024: [1] * 9 + [0], 2048: [1] * 6 + [0] * 4, 4096: [1] * 10},
        "s2": {512: [1] * 10, 1024: [1] * 4 + [0] * 6, 2048: [1] * 10, 4096: [0] * 10},
    }
)


def test_accuracies_by_hand() -> None:
    found = accuracies(HAND).set_index(["model", "tokens"])
    assert found.loc[("sf", 1024), "accuracy"] == 0.9
    assert found.loc[("sf", 1024), "low"] == pytest.approx(0.596, abs=1e-3)  # Wilson, 9 of 10
    made = table(HAND)
    assert made.written().set_index("model").loc["sf", "1024"] == "0.90 (0.60 to 0.98)"
    numbers = made.frame.set_index("model").loc["sf"]
    assert (numbers["1024"], numbers["1024 (n)"]) == (0.9, 10)
    assert numbers["1024 (low)"] == found.loc[("sf", 1024), "low"]


def test_topics_stand_above_what_naming_any_would_give() -> None:
    made = topic_table({"m": {"512": Accuracy(1, 2)}}, {"512": 0.125})
    assert made.frame["512"].tolist() == [0.5, 0.125] and made.frame["512 (n)"].tolist() == [2, pd.NA]
    assert made.written()["512"].tolist() == ["0.50 (0.09 to 0.91)", "0.12"]


def test_failures_are_shown_shortest_first() -> None:
    found = failures(HAND, count=2)
    assert found[found.model == "sf"].tokens.tolist() == [1024, 2048]
    assert "correct" not in found


def test_interpolated_extensions_go_by_their_patterns() -> None:
    longer = HAND[HAND.model == "sf"].assign(model="sf, interpolated to 4096")
    found = only_interpolated(pd.concat([HAND, longer]), ["full", "sf"], 4096)
    assert set(found.model) == {"sf"} and len(found) == len(longer)


def test_figures_have_every_model() -> None:
    panels = [KeysPanel("full cache", HAND, 2048), KeysPanel("H2O", HAND[HAND.tokens == 1024], 2048)]
    figure = retrieval_figure(panels, [BASE, "full", "sf"])
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["full cache", "H2O"]
    assert [len(axis.get_xticks()) for axis in figure.axes] == [4, 4], "lengths are the same in all panels"
    words = [LABELS[name] for name in (BASE, "full", "sf")]
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == words
    titles = [axis.get_title() for axis in depth_figure(HAND, ["full", "sf"]).axes[:2]]
    assert titles == ["full attention\n(n = 1 a cell)", "SF-Attn\n(n = 1 a cell)"]


def test_a_study_is_measured_once_with_each_cache(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "train").mkdir(parents=True)
    for number in range(4):
        text = "".join(f"def function_{number}_{i}(x):\n    return x * {i}\n\n\n" for i in range(40))
        (tmp_path / "corpus" / "train" / f"{number}.txt").write_text(text)
    training = TrainSpec(
        base="data/base",
        corpus=CorpusSpec(f"dir:{tmp_path / 'corpus'}"),
        context=1024,
        steps=1,
        batch_size=1,
        micro_batch_size=1,
    )
    study = RetrievalStudy(recipe_of(training), ("sf",), (0,), (96,), trials=2, further=2048)
    ask = partial(measure, runs=tmp_path / "runs", cache=tmp_path / "cache", progress=False)
    found = ask(study)
    assert len(found) == 4 * 2
    assert found.model.unique().tolist() == [BASE, UNTRAINED, "sf", "sf, interpolated to 2048"]
    assert found[found.model == BASE].correct.all()
    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/retrieval-*/finished.json")}
    assert len(written) == 4
    pd.testing.assert_frame_equal(ask(study), found)
    bounded = ask(study, policy=Local(8))
    assert len(list(tmp_path.glob("runs/retrieval-*"))) == 8
    assert not bounded.correct.any()
    narrow = dataclasses.replace(study, batch_size=1)
    pd.testing.assert_frame_equal(ask(narrow), found)  # however many are read at once
    assert {p: p.stat().st_mtime_ns for p in written} == written
    asked = models_under_test(study, tmp_path / "runs", tmp_path / "cache", progress=False)
    contexts = {subject.name: subject.ready().config.max_position_embeddings for subject in asked}
    assert contexts == {BASE: 512, UNTRAINED: 1024, "sf": 1024, "sf, interpolated to 2048": 2048}


def test_long_documents_are_read_in_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainSpec(base="data/base", context=1024)
    study = RetrievalStudy(
        recipe_of(training), ("sf",), (0,), (96, 192), trials=4, batch_size=3, batch_tokens=400
    )
    assert [study.rows_at_once(tokens) for tokens in (96, 192, 4096)] == [3, 2, 1]
    read: list[list[int]] = []

    def load() -> torch.nn.Module:
        model: Any = AutoModelForCausalLM.from_pretrained("data/base", dtype=torch.float32)
        generate = model.generate

        def noted(ids: torch.Tensor, **options: Any) -> Any:
            read.append(list(ids.shape))
            return generate(ids, **options)

        model.generate = noted
        return model  # type: ignore[no-any-return]

    def only_base(*_: object) -> Iterator[ModelUnderTest]:
        yield ModelUnderTest(BASE, None, {}, load)

    monkeypatch.setattr(retrieval_study, "models_under_test", only_base)
    found = measure(study, runs=tmp_path, progress=False)
    assert [rows for rows, _ in read] == [3, 1, 2, 2] and found.correct.all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patterns": ()}, "patterns=\\(\\)"),
        ({"seeds": (1, 1)}, "seeds=\\(1, 1\\)"),
        ({"trials": 1}, "trials=1"),
        ({"further": 1024}, "further=1024"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_bad_studies_are_named(changes: dict[str, object], words: str) -> None:
    study = RetrievalStudy(recipe_of(TrainSpec(base="data/base", context=1024)), ("sf",), (0,), (96,))
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(study, **changes)  # type: ignore[arg-type]
