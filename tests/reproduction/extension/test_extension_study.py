"""A whole small study of context extensions: measured once, read back afterwards."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sinklora.reproduction.base_model.study import train_tokenizer
from sinklora.reproduction.extension.figures import context_figure, gap_figure
from sinklora.reproduction.extension.study import ExtensionStudy, measure
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExtensionStudy, Path]:
    folder = tmp_path_factory.mktemp("extension")
    texts = [f"def function_{i}(x):\n    return x * {i}\n" * 40 for i in range(12)]
    for split in ("train", "test"):
        (folder / "corpus" / split).mkdir(parents=True)
        for number, text in enumerate(texts):
            (folder / "corpus" / split / f"{number}.txt").write_text(text)
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.save_pretrained(folder / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=32, tie_word_embeddings=True, **sizes
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    training = TrainSpec(
        base=str(folder / "base"),
        corpus=CorpusSpec(f"dir:{folder / 'corpus'}"),
        context=64,
        steps=2,
        batch_size=1,
        micro_batch_size=1,
    )
    sets = {"A": CorpusSpec(f"dir:{folder / 'corpus'}", "test")}
    return ExtensionStudy(training, ("full", "sf"), (0, 1), sets, (32, 64), 16, 3, 100), folder


def test_a_study_measures_everything_once(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    first = measure(asked, runs=folder / "runs", cache=folder / "cache", progress=False)
    assert len(first) == 2 + 2 * 2 * 2
    assert set(first.tokens) == {3 * 99}
    assert set(first.attention) == {"full"}
    assert first.attrs["data"]["A"]["documents"] == 12
    written = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/finished.json")}
    assert len(written) == 4 + 5
    again = measure(asked, runs=folder / "runs", cache=folder / "cache", progress=False)
    pd.testing.assert_frame_equal(first, again)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/finished.json")} == written


def test_the_figures_show_every_method(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    found = measure(asked, runs=folder / "runs", cache=folder / "cache", progress=False)
    [axis] = gap_figure(found, ["full", "sf"], 32, 64).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["sf"]
    [axis] = context_figure(found, ["full", "sf"]).axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["full", "sf"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"patterns": ("sf",)}, "'full' is needed"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds=\\(1, 1\\)"),
        ({"stride": 32}, "stride=32"),
        ({"documents": 0}, "documents=0"),
        ({"patterns": ("full", "sff")}, "sff"),
        ({"document_tokens": 50}, "document_tokens=50"),
    ],
)
def test_bad_studies_are_named(
    study: tuple[ExtensionStudy, Path], changes: dict[str, object], words: str
) -> None:
    import dataclasses

    with pytest.raises(ValueError, match=words):
        dataclasses.replace(study[0], **changes)  # type: ignore[arg-type]
