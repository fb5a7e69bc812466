"""Sinks and heavy hitters on text: hand-worked shares, uniform attention, one layer at a time."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from figure_data import darkness, error_bars, image, lines
from helpers import assert_close
from sinklora.records.tables import markdown
from sinklora.reproduction.names import EMBEDDED, model_title
from sinklora.reproduction.patterns.attention_figures import (
    head_mass_figure,
    heavy_hitter_curves,
    maps_grid_figure,
    sink_mass_figure,
)
from sinklora.reproduction.patterns.attention_study import (
    ALL,
    ASIDE,
    KEY_SHARES,
    AttentionStudy,
    curve_column,
    measure_attention,
    measure_models,
    received_by_most_attended,
    reduce,
    uniform_curve,
    uniform_received,
)
from sinklora.reproduction.patterns.attention_tables import (
    FIRST,
    STRONGEST,
    attention_by_passage,
    attention_verdict,
    sinks_by_layer,
)
from sinklora.reproduction.patterns.attention_weights import chosen_maps, visit_attention
from sinklora.reproduction.patterns.figures import FAINTEST
from sinklora.reproduction.patterns.study import attention_maps, sink_mass
from sinklora.train.sources import CorpusSpec
from tiny_models import HEADS, tiny_model

TOKENS = 72


def uniform_maps(heads: int = 2, tokens: int = TOKENS) -> Tensor:
    """Every query attends evenly to all that it sees."""
    return (torch.ones(tokens, tokens).tril() / torch.arange(1, tokens + 1)[:, None]).expand(heads, -1, -1)


def rows_of(model: str, mass: dict[str, list[float]]) -> pd.DataFrame:
    """One passage per document; `mass`: what the first tokens get in each layer, of two heads +-0.05."""
    rows = []
    for document, layers in mass.items():
        for layer, share in enumerate(layers):
            row = {"model": model, "document": document, "start": 1, "tokens": 512, "layer": layer}
            row |= {"first 1": share / 2, "first 4, head 0": share - 0.05, "first 4, head 1": share + 0.05}
            row |= {curve_column(ALL, s): s**0.5 for s in KEY_SHARES}
            rows.append(row | {curve_column(ASIDE, s): s**0.7 for s in KEY_SHARES})
    return pd.DataFrame(rows)


REAL = rows_of("real", {"a": [0.5, 0.02], "b": [0.6, 0.1], "c": [0.7, 0.18]})


def test_received_attention_by_hand() -> None:
    received = torch.tensor([1.0, 6.0, 0.0, 3.0], dtype=torch.float64)
    found = received_by_most_attended(received, (0.125, 0.25, 0.5, 0.625, 1.0))
    assert_close(found, [0.3, 0.6, 0.9, 0.95, 1.0], atol=1e-12)


def test_uniform_attention_gives_the_uniform_curve_exactly() -> None:
    assert_close(uniform_received(3), [1 + 1 / 2 + 1 / 3, 1 / 2 + 1 / 3, 1 / 3], atol=1e-12)
    assert float(uniform_curve(ALL, 2000)[KEY_SHARES.index(0.1)]) == pytest.approx(0.33, abs=0.005)
    kept = reduce(uniform_maps())
    for kind in (ALL, ASIDE):
        curve = [kept[curve_column(kind, share)] for share in KEY_SHARES]
        assert_close(curve, uniform_curve(kind, TOKENS), atol=1e-6)
        assert curve[-1] == pytest.approx(1)
    even = [1 / n for n in range(65, TOKENS + 1)]
    assert kept["first 1"] == pytest.approx(np.mean(even))
    assert kept["first 4, head 1"] == pytest.approx(4 * np.mean(even))


def test_a_sink_counts_in_its_head_and_not_aside() -> None:
    weights = torch.zeros(2, TOKENS, TOKENS)
    weights[0, :, 0] = 1.0  # a head that sees the first token alone
    weights[0, :, 5] = 1e-9
    weights[1] = torch.eye(TOKENS)
    kept = reduce(weights)
    assert kept["first 1"] == pytest.approx(0.5)
    assert (kept["first 4, head 0"], kept["first 4, head 1"]) == (pytest.approx(1), 0)
    assert kept[curve_column(ALL, 0.5)] == pytest.approx((1 + 0.5) / 2)
    assert kept[curve_column(ASIDE, 0.5)] == pytest.approx((1 + 0.5) / 2), "aside: all on key 5, and evenly"


@pytest.mark.parametrize("architecture", ["llama-gqa", "neox-mha"])
def test_layers_come_one_at_a_time_with_the_models_own_weights(architecture: str) -> None:
    model = tiny_model(architecture, max_position_embeddings=128)
    ids = np.arange(1, 50)
    tokens = torch.from_numpy(ids)[None]
    model.set_attn_implementation("eager")
    expected = model(tokens, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    living: list[Any] = []
    seen: list[Tensor] = []

    def visit(layer: int, weights: Tensor) -> None:
        assert layer == len(seen) and all(other() is None for other in living)
        living.append(weakref.ref(weights.untyped_storage()))
        seen.append(weights.sum((0, 1)))

    visit_attention(model, ids, visit)
    for found, whole in zip(seen, expected, strict=True):
        assert_close(found, whole[0].sum((0, 1)), atol=1e-5)
    assert model.config._attn_implementation == "sdpa"
    assert sum(len(module._forward_hooks) for module in model.modules()) == hooks
    grid = chosen_maps(model, ids, layers=[1], heads=[0, 3])
    assert list(grid) == [(1, 0), (1, 3)]
    assert_close(grid[1, 3], expected[1][0, 3], atol=1e-6)
    with pytest.raises(IndexError, match=rf"heads=\[0, {HEADS}\]: the model has {HEADS} of them"):
        chosen_maps(model, ids, layers=[0], heads=[0, HEADS])


def test_a_study_is_that_of_the_maps_and_goes_on_where_it_was(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "text" / "test").mkdir(parents=True, exist_ok=True)
        text = "".join(f"{name}_{i} = {i * i}\n" for i in range(120))
        (tmp_path / "text" / "test" / f"{name}.txt").write_text(text)
    corpus = CorpusSpec(f"dir:{tmp_path / 'text'}", "test")
    study = AttentionStudy("data/base", corpus, passage_tokens=TOKENS, passages=3)
    where = {"runs": tmp_path / "runs", "cache": tmp_path / "tokens", "progress": False}
    rows = measure_attention(study, **where)  # type: ignore[arg-type]
    assert len(rows) == 3 * 4 and set(rows.model) == {EMBEDDED} and rows.document.nunique() == 2
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    model = AutoModelForCausalLM.from_pretrained("data/base", dtype=torch.float32).eval()
    last = rows[(rows.document == rows.document.iloc[-1])].iloc[0]
    text = (tmp_path / "text" / last.document).read_text()
    ids = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids = [ids[0], *ids[last.start : last.start + TOKENS - 1]]
    mass = sink_mass(attention_maps(model, ids), 4)
    own = rows[(rows.document == last.document) & (rows.start == last.start)]
    assert_close(own[[f"first 4, head {h}" for h in range(4)]].to_numpy(), mass, atol=1e-6)
    finished = sorted((tmp_path / "runs").glob("attention-*"))
    times = [(path / "rows.json").stat().st_mtime_ns for path in finished]
    assert len(finished) == 3
    more = measure_attention(replace(study, passages=4), **where)  # type: ignore[arg-type]
    assert len(more) == 4 * 4
    assert [(path / "rows.json").stat().st_mtime_ns for path in finished] == times
    both = measure_models([replace(study, passages=4), study], **where)  # type: ignore[arg-type]
    assert both.equals(pd.concat([more, rows], ignore_index=True))
    assert both.attrs["data"] == {EMBEDDED: rows.attrs["data"]}
    assert both.attrs["runs"] == [*more.attrs["runs"], *rows.attrs["runs"]]
    with pytest.raises(ValueError, match="passage_tokens=64: expected at least 65"):
        replace(study, passage_tokens=64)


def test_intervals_are_over_documents_by_hand() -> None:
    twice = pd.concat([REAL, REAL.assign(start=9)], ignore_index=True)  # passages of a document, alike
    for rows, passages in ((REAL, 3), (twice, 6)):
        frame = sinks_by_layer(rows).frame.set_index("layer")
        assert frame.loc["0", "documents"] == 3 and frame.loc["0", "passages"] == passages
        assert frame.loc["0", FIRST] == pytest.approx(60)
        half = 4.302653 * 10 / 3**0.5  # t of two degrees of freedom
        assert frame.loc["0", f"{FIRST} (low)"] == pytest.approx(60 - half, abs=1e-3)
        assert frame.loc["all", FIRST] == pytest.approx(35)
        assert frame.loc["0", STRONGEST] == pytest.approx(65)
        assert frame.loc["all", STRONGEST] == pytest.approx(65)
        assert frame.loc["uniform attention", FIRST] == pytest.approx(1.851, abs=1e-3)
    assert "60.00 (35.16 to 84.84)" in markdown(sinks_by_layer(REAL))


def test_models_are_called_by_their_titles() -> None:
    assert model_title("smollm2-135m") == "SmolLM2-135M-Instruct (Q4_1)"
    assert (model_title("data/base"), model_title("some/model")) == (EMBEDDED, "some/model")


def test_every_passage_has_a_line_and_a_column_a_layer() -> None:
    shown = attention_by_passage(pd.concat([REAL, rows_of("base", {"d": [0.2]})], ignore_index=True))
    frame = shown.frame.set_index(["model", "measure", "document"])
    assert len(frame) == 3 * 4
    assert frame.loc[("real", FIRST, "b"), "layer 0"] == pytest.approx(60)
    assert frame.loc[("real", FIRST, "b"), "mean over layers"] == pytest.approx(35)
    assert np.isnan(frame.loc[("base", FIRST, "d"), "layer 1"])


def test_the_verdict_counts_layers_above_uniform() -> None:
    # Document means 26, 35, 44; the second layer's 2, 10, 18 per cent are not surely above 1.9.
    said = attention_verdict(REAL)
    assert said.startswith("real: the first 4 tokens draw 35.0 % of attention (12.6 to 57.4; uniform")
    assert "would give 1.9), more than uniform in 1 of 2 layers" in said
    assert "tenth of keys receives 32 % (uniform 33), without the first 4 tokens 20 % of what is" in said


def test_figures_show_the_tables_values() -> None:
    base = rows_of("base", {"d": [0.2, 0.3], "e": [0.4, 0.3]})
    rows = pd.concat([base, REAL], ignore_index=True)
    figure = sink_mass_figure(rows)
    assert [axis.get_title() for axis in figure.axes] == ["base\nn = 2 in 2", "real\nn = 3 in 3"]
    [(_, bars)] = error_bars(figure.axes[1])
    half = 4.302653 * 10 / 3**0.5
    assert_close(bars[0], [0, 60 - half, 60, 60 + half], atol=1e-3)
    assert lines(figure.axes[1])["uniform attention"][1] == pytest.approx([1.851, 1.851], abs=1e-3)
    panels: list[Axes] = heavy_hitter_curves(rows).axes
    assert [panels[row].get_ylabel() for row in (0, 2)] == ["base", "real"]
    for panel, kind, power in zip(panels[2:], (ALL, ASIDE), (0.5, 0.7), strict=True):
        shown = lines(panel)
        assert_close(shown["mean over layers"][0], [100 * s for s in KEY_SHARES], atol=1e-9)
        assert_close(shown["mean over layers"][1], [100 * s**power for s in KEY_SHARES], atol=1e-9)
        assert_close(shown["uniform causal attention"][1], 100 * uniform_curve(kind, 512), atol=1e-9)
    masses = head_mass_figure(rows).axes[1]
    assert masses.get_title() == "real, 3 passages"
    assert_close(image(masses), [[55.0, 5.0], [65.0, 15.0]], atol=1e-9)
    assert darkness(masses)[1, 0] > darkness(masses)[0, 0] > darkness(masses)[1, 1] > darkness(masses)[0, 1]


def test_the_grid_has_a_row_a_layer_and_a_column_a_head() -> None:
    maps = {(layer, head): torch.full((3, 3), 10.0 ** -(layer + head)) for layer in (0, 2) for head in (0, 1)}
    axes = maps_grid_figure(maps).axes
    assert [axis.get_title() for axis in axes[:4]] == ["head 0", "head 1", "", ""]
    assert axes[2].get_ylabel().startswith("layer 2")
    assert_close(image(axes[3]), np.full((3, 3), 1e-3), atol=1e-9)
    assert darkness(axes[0]).min() > darkness(axes[1]).max() > darkness(axes[3]).max()
    assert [axis.images[0].norm.vmin for axis in axes[:4]] == [FAINTEST] * 4, "one scale"
