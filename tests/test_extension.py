"""The comparison of context extensions: its arithmetic by hand, its verdicts, and a whole small study."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers import assert_close
from sinklora.base_model import train_tokenizer
from sinklora.data import CorpusSpec
from sinklora.evaluate.extension import (
    UNTRAINED,
    ExtensionStudy,
    comparisons,
    measure,
    spread,
    table,
    verdict,
)
from sinklora.plots import context_figure, gap_figure
from sinklora.train import TrainSpec


def rows(values: dict[tuple[str, int | None], tuple[float, float]]) -> pd.DataFrame:
    """Measurements at 512 and 2048 tokens by (method, seed)."""
    return pd.DataFrame(
        [
            {"method": method, "seed": seed, "test_set": "A", "context": context, "perplexity": value}
            for (method, seed), pair in values.items()
            for context, value in zip((512, 2048), pair, strict=True)
        ]
    )


HAND = rows(
    {
        (UNTRAINED, None): (30.0, 40.0),
        ("full", 0): (18.0, 16.0),
        ("full", 1): (18.0, 15.0),
        ("sf", 0): (18.0, 17.0),
        ("sf", 1): (18.0, 17.5),
        ("s2", 0): (18.0, 18.0),
        ("s2", 1): (18.0, 17.0),
    }
)


def test_gap_gain_and_share_by_hand() -> None:
    found = comparisons(HAND, 512, 2048).set_index(["method", "seed"])
    assert_close(
        found.loc[("sf", 0)][["gap_to_full", "gain_from_context", "share"]].astype(float).to_numpy(),
        [1.0, 1.0, 23 / 24],
        atol=1e-7,
    )
    assert_close(
        found.loc[("sf", 1)][["gap_to_full", "gain_from_context", "share"]].astype(float).to_numpy(),
        [2.5, 0.5, 22.5 / 25],
        atol=1e-7,
    )
    assert found.loc[("full", 0)].share == 1
    assert UNTRAINED not in found.index.get_level_values("method")


def test_the_table_by_hand() -> None:
    made = table(HAND, "A", ["full", "sf"], 512, 2048).set_index("trained with")
    assert made.loc[UNTRAINED, "2048"] == "40.00"
    assert made.loc["sf", "2048"] == "17.25 ± 0.35"
    assert made.loc["sf", "gap to full"] == "1.75 ± 1.06"
    assert pd.isna(made.loc[UNTRAINED, "gap to full"])


def test_spread() -> None:
    assert spread(pd.Series([1.0, 3.0])) == "2.00 ± 1.41"
    assert spread(pd.Series([2.0])) == "2.00"


@pytest.mark.parametrize(
    ("sf", "words"),
    [
        ((17.0, 16.9), "Held: .* in 2 of 2"),
        ((17.0, 17.5), "Not decided: .* in 1 of 2"),
        ((19.0, 19.0), "Did not hold: .* in 0 of 2"),
    ],
)
def test_the_verdict_follows_the_numbers(sf: tuple[float, float], words: str) -> None:
    changed = HAND.copy()
    for seed, value in enumerate(sf):
        changed.loc[
            (changed.method == "sf") & (changed.seed == seed) & (changed.context == 2048), "perplexity"
        ] = value
    assert pd.Series([verdict(changed, "A", 512, 2048)]).str.contains(words).all()


def test_the_verdict_without_rivals_names_the_shares_alone() -> None:
    text = verdict(HAND[HAND.method.isin([UNTRAINED, "full", "sf"])], "A", 512, 2048)
    assert "beats" not in text and "sf 92.9 %" in text


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
        ({"document_tokens": 50}, "document_tokens=50"),
    ],
)
def test_bad_studies_are_named(
    study: tuple[ExtensionStudy, Path], changes: dict[str, object], words: str
) -> None:
    import dataclasses

    with pytest.raises(ValueError, match=words):
        dataclasses.replace(study[0], **changes)  # type: ignore[arg-type]
