"""A whole small study of context extensions: measured once, read back afterwards."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from recipes import functions, tiny_data
from sinklora.attention.patterns import SF
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.evaluate.perplexity import measure_perplexity
from sinklora.evaluate.position_losses import losses_by_position
from sinklora.evaluate.step_spec import StepCost, StepSpec
from sinklora.reproduction.extension.bounded import (
    FULL_CACHE,
    bounded_claims,
    bounded_table,
    through_caches,
)
from sinklora.reproduction.extension.comparison import losses
from sinklora.reproduction.extension.equal_time import (
    equal_time_claims,
    equal_time_table,
    in_equal_time,
)
from sinklora.reproduction.extension.readings import OWN, chosen_texts, made_of
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.extension.selection import (
    RATES,
    at_own_rates,
    chosen_rates,
    is_valid,
    losses_by_steps,
    mean_losses,
    search_rates,
    validity,
)
from sinklora.reproduction.extension.study import (
    ExtensionStudy,
    attention_cost,
    baselines,
    each_model,
    measure,
    training_curves,
)
from sinklora.reproduction.extension.tables import rates_table, untrained_methods
from sinklora.reproduction.extension.texts import TextSet, texts_of
from sinklora.reproduction.extension.timed_steps import step_costs
from sinklora.reproduction.patterns.study import attention_maps
from sinklora.reproduction.patterns.study import sink_mass as sink_mass_of_maps
from sinklora.reproduction.real_model.mechanism import by_position, sink_mass
from sinklora.train.run import load_trained, train
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExtensionStudy, Path]:
    folder = tmp_path_factory.mktemp("extension")
    texts = functions(12, 40)
    source, base = tiny_data(folder, texts, (4, 8), positions=32)
    recipe = Recipe(
        training=TrainSpec(
            base=base,
            corpus=CorpusSpec(source),
            context=64,
            steps=2,
            batch_size=1,
            micro_batch_size=1,
        ),
        original_context=32,
        texts={
            "validation": TextSet(CorpusSpec(source, "validation"), 2, 100),
            "A": TextSet(CorpusSpec(source, "test"), 3, 100),
        },
        stride=16,
        grid=(0.001, 0.01),
        widenings=1,
    )
    return ExtensionStudy(recipe, ("full", "sf"), (0, 1), ("A",), (32, 64), ("sf",)), folder


def test_a_study_measures_everything_once(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    first = measure(asked, runs=folder / "runs", progress=False)
    # The base at its own context; three untrained, two trained with two seeds at two; own attention.
    assert len(first) == 3 * (1 + 3 * 2 + 2 * 2 * 2 + 2)
    assert set(first.tokens) == {99}
    assert set(first[first.seed.isna()].method) == {
        "base",
        "linear ×2, untrained",
        "dynamic ×2, untrained",
        "yarn ×2, untrained",
    }
    assert first[first.method == "base"].context.unique().tolist() == [32]
    assert set(first[first.attention == OWN].method) == {"sf"}
    assert first.attrs["data"]["A"]["pieces"] == 3
    written = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/finished.json")}
    again = measure(asked, runs=folder / "runs", progress=False)
    pd.testing.assert_frame_equal(first, again)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/finished.json")} == written
    curves = training_curves(asked, runs=folder / "runs")
    assert curves.groupby(["method", "seed"]).size().tolist() == [2] * 4
    trained = [train(spec, runs=folder / "runs", progress=False).path.name for spec in asked.specs()]
    assert [record["run"] for record in curves.attrs["runs"]] == trained


def test_no_training_reads_with_the_positions_of_its_name(study: tuple[ExtensionStudy, Path]) -> None:
    asked, _ = study
    kinds = {
        reading.model.name: reading.model.ready().config.rope_parameters["rope_type"]
        for reading in baselines(asked)
    }
    untrained = {f"{method} ×2, untrained": method for method in ("linear", "dynamic", "yarn")}
    assert kinds == {"base": "default", **untrained}


def test_a_row_is_what_the_model_says_of_the_piece(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    rows = measure(asked, runs=folder / "runs", progress=False)
    spec = asked.recipe.spec("sf", 1)
    model = load_trained(train(spec, runs=folder / "runs", progress=False), spec)
    line = rows[(rows.method == "sf") & (rows.seed == 1) & (rows.context == 64) & (rows.attention == "full")]
    tokenizer = AutoTokenizer.from_pretrained(asked.recipe.training.base)
    sets = {"A": asked.recipe.texts["A"]}
    chosen = texts_of(sets, tokenizer, asked.recipe.seen, runs=folder / "runs")["A"]
    found = measure_perplexity(
        model, [piece.ids for piece in chosen.pieces], context=64, stride=16, progress=False
    )
    assert line.nll.tolist() == pytest.approx([score.nll for score in found.per_document], rel=1e-5)
    own = rows[(rows.method == "sf") & (rows.seed == 1) & (rows.attention == OWN)]
    assert abs(own.nll.to_numpy() - line.nll.to_numpy()).max() > 1e-6


def test_positions_and_sinks_of_every_model(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    positions = by_position(asked, "A", 16, runs=folder / "runs", progress=False)
    rows = measure(asked, runs=folder / "runs", progress=False)
    assert positions.groupby(["method", "seed"], dropna=False).size().unique().tolist() == [3 * 4]
    assert set(positions.method) == set(rows.method)
    assert sorted(positions.position.unique()) == [16, 32, 48, 64]
    masses = sink_mass(asked, "A", 80, runs=folder / "runs", progress=False)
    assert masses.groupby(["method", "seed"], dropna=False).size().unique().tolist() == [3]
    assert masses.share.between(0, 1).all()
    for found in (positions, masses):
        assert found.attrs["data"] == rows.attrs["data"] and found.attrs["runs"]


def test_what_is_inside_a_model_is_measured_piece_by_piece(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    runs = folder / "runs"
    positions = by_position(asked, "A", 16, runs=runs, progress=False)
    masses = sink_mass(asked, "A", 80, runs=runs, progress=False)
    readings = each_model(asked, runs, False, [])
    [model] = [r.model.ready() for r in readings if (r.model.name, r.model.seed) == ("sf", 1)]
    for piece in chosen_texts(asked.recipe, ["A"], runs)["A"].pieces:
        own = [
            rows[(rows.method == "sf") & (rows.seed == 1) & (rows.piece == piece.name)]
            for rows in (positions, masses)
        ]
        [nats] = losses_by_position(model, [piece.ids], context=64, bucket=16, progress=False)
        assert dict(zip(own[0].position, own[0].nll, strict=True)) == pytest.approx(
            dict(zip((16, 32, 48, 64), nats.tolist(), strict=True)), rel=1e-5
        )
        assert len(set(nats)) == 4
        by_layer = sink_mass_of_maps(attention_maps(model, piece.ids[:80]), 4).mean(1)
        assert own[1].share.tolist() == pytest.approx(by_layer.tolist(), rel=1e-5)


def test_full_attention_gets_as_many_seconds(
    study: tuple[ExtensionStudy, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of which the rounds are given (the measurement has tests of its own): a load of ten in the second
    round changes no ratio. Of two steps one is left, or there are three.
    """
    asked, folder = study
    rounds = {"sf": [[2.0, 20.0, 2.0], [1.1, 11.0, 1.1]], "short": [[2.0, 2.0, 2.0], [3.0, 30.0, 2.9]]}
    asked = dataclasses.replace(asked, patterns=("full", "sf", "short"))

    def given(steps: Sequence[StepSpec], runs: Path, used: list[Path]) -> list[list[float]]:
        assert steps[0].pattern == "full" and steps[0].context == 64 and steps[0].batch == 1
        return rounds[steps[1].pattern]

    monkeypatch.setattr("sinklora.reproduction.extension.equal_time.compared_rounds", given)
    rows, times = in_equal_time(asked, ["sf", "short"], runs=folder / "runs", progress=False)
    assert {name: (time.step_time, time.steps) for name, time in times.items()} == {
        "sf": (pytest.approx(0.55), 1),
        "short": (pytest.approx(1.5), 3),
    }
    names = ["full attention in sf's time", "full attention in short's time"]
    assert rows.method.unique().tolist() == names
    assert rows.seed.unique().tolist() == [0, 1] and len(rows) == 2 * 2 * 2 * 3
    steps = {train(asked.recipe.spec("full", steps=n), runs=folder / "runs").path.name for n in (1, 3)}
    assert steps <= {record["run"] for record in rows.attrs["runs"]}

    everything = measure(asked, runs=folder / "runs", progress=False)
    found = losses(pd.concat([everything[everything.attention == "full"], rows]), "A", 64)
    table = equal_time_table(found, untrained_methods(everything), times, 2).frame.set_index("trained with")
    assert [str(n) for n in table.steps] == ["<NA>"] * 4 + ["2", "2", "1", "2", "3"]
    assert table.index.tolist()[4:] == ["full", "sf", names[0], "short", names[1]]
    lead = rows[(rows.method == names[0]) & (rows.context == 64)].nll.mean() - found.by_method["sf"].mean()
    assert table.loc["sf", "nats below full attention in its time"] == pytest.approx(lead)
    claims = equal_time_claims(found, times, valid=True, model="tiny")
    assert [claim.sentence for claim in claims] == [
        "SF-Attn is better than full attention in as many seconds (1 steps)",
        "windows alone is better than full attention in as many seconds (3 steps)",
    ]
    assert claims[0].estimate == pytest.approx(lead) and claims[0].restated
    for claim in equal_time_claims(found, times, valid=False, model="tiny"):
        assert claim.outcome == "not decided" and claim.reason
    with pytest.raises(ValueError, match=r"equal_time=\['full'\]: expected some of \['sf', 'short'\]"):
        in_equal_time(asked, ["full"], runs=folder / "runs")


def test_steps_cost_what_was_measured(
    study: tuple[ExtensionStudy, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds by the rounds in which all patterns have their turn, memory by a step alone (both have tests of
    their own).
    """
    asked, _ = study
    module = "sinklora.evaluate.training_step"
    rounds = [[1.0, 9.0, 1.2], [0.5, 4.5, 0.6]]
    monkeypatch.setattr(f"{module}.measured_in_turn", lambda steps, **_: rounds[: len(steps)])
    monkeypatch.setattr(f"{module}.measured", lambda step, **_: StepCost(None, len(step.pattern)))
    found = step_costs(asked.training, ["full", "sf"], runs=tmp_path)
    assert found == {"full": StepCost(1.2, 4), "sf": StepCost(0.6, 2)}
    assert step_costs(asked.training, [], runs=tmp_path) == {}


def made_by(asked: ExtensionStudy, runs: Path, **changes: float) -> str:
    """The run of full attention with other fields of its training."""
    return train(asked.recipe.spec("full", **changes), runs=runs, progress=False).path.name


def recorded(rows: pd.DataFrame) -> set[str]:
    """The runs that rows say they were made of, each once, of the validation texts."""
    assert set(rows.attrs["data"]) == {"validation"} and rows.attrs["data"]["validation"]["pieces"] == 2
    names = [record["run"] for record in rows.attrs["runs"]]
    assert len(set(names)) == len(names)
    return set(names)


def test_what_a_choice_was_made_of_is_recorded(study: tuple[ExtensionStudy, Path]) -> None:
    """Each learning rate and each number of steps has runs of its own, which a concatenation forgets."""
    asked, folder = study
    runs = folder / "runs"
    rows = search_rates(asked.recipe, ["full"], runs=runs)
    rates = rows["learning rate"].dropna().unique().tolist()
    assert {made_by(asked, runs, learning_rate=rate) for rate in rates} <= recorded(rows)
    own = at_own_rates(asked.recipe, ["sf"], runs=runs)
    assert made_by(asked, runs) in recorded(own) and recorded(own) != recorded(rows)
    by_steps = losses_by_steps(asked.recipe, [1, 2], runs=runs, search=at_own_rates)
    assert {made_by(asked, runs, steps=steps) for steps in (1, 2)} <= recorded(by_steps)
    curves = training_curves(dataclasses.replace(asked, seeds=(0,)), runs=runs)
    assert recorded(by_steps) < {record["run"] for record in made_of([curves, by_steps])["runs"]}


def test_rates_are_searched_until_the_best_is_inside(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    rows = search_rates(asked.recipe, ["full"], runs=folder / "runs")
    tried = sorted(rows["learning rate"].dropna().unique())
    assert len(tried) == 3 and {0.001, 0.01} < set(tried)
    assert rows[rows.seed.isna()].groupby(["method", "context", "piece"]).size().max() == 1
    assert set(rows.test_set) == {"validation"}


def test_a_rate_at_which_training_diverges_is_infinitely_bad(study: tuple[ExtensionStudy, Path]) -> None:
    """The patterns that come to an end at another rate are chosen there; one that never does, nowhere."""
    asked, folder = study
    recipe = dataclasses.replace(asked.recipe, grid=(0.001, 1e30), widenings=0)
    rows = search_rates(recipe, ["full", "sf"], runs=folder / "runs")
    means = mean_losses(rows).set_index(RATES).nll
    assert np.isfinite(means).to_dict() == {
        ("full", 0.001): True,
        ("full", 1e30): False,
        ("sf", 0.001): True,
        ("sf", 1e30): False,
    }
    assert chosen_rates(rows)["learning rate"].tolist() == [0.001, 0.001]
    assert rates_table(rows).written().perplexity.tolist().count("diverged") == 2
    hopeless = search_rates(dataclasses.replace(recipe, grid=(1e30,)), ["full"], runs=folder / "runs")
    assert validity(hopeless) == "Not valid: full attention diverged at every learning rate tried."
    assert not is_valid(hopeless)


def test_without_a_search_each_pattern_has_the_recipes_rate(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    recipe = dataclasses.replace(asked.recipe, learning_rates={"sf": 0.01})
    rows = at_own_rates(recipe, ["sf"], runs=folder / "runs")
    found = rows.dropna(subset="seed").groupby("method")["learning rate"].unique()
    assert {name: list(rates) for name, rates in found.items()} == {
        "full": [recipe.training.learning_rate],
        "sf": [0.01],
    }
    assert rows[rows.seed.isna()].groupby(["method", "context", "piece"]).size().max() == 1


def test_models_are_read_through_bounded_caches(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    caches = {FULL_CACHE: Full(), "H2O": H2O(0.5), "StreamingLLM": StreamingLLM(0.5)}
    rows = through_caches(asked, "A", caches, 48, runs=folder / "runs", progress=False)
    # Three untrained and two patterns with two seeds; three caches; three pieces.
    assert len(rows) == (3 + 2 * 2) * 3 * 3
    assert rows.attrs["data"]["A"]["pieces"] == 3
    # With the full cache it is what one pass over the whole piece says of its end.
    chosen = chosen_texts(asked.recipe, ["A"], folder / "runs")["A"]
    [piece] = [piece for piece in chosen.pieces if piece.name == rows.piece.iloc[0]]
    spec = asked.recipe.spec("sf", 1)
    model = load_trained(train(spec, runs=folder / "runs", progress=False), spec).eval()
    ids = torch.from_numpy(piece.ids[None, :64].astype("int64"))
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(ids).logits[0, 47:-1], ids[0, 48:])
    given = rows[(rows.method == "sf") & (rows.seed == 1) & (rows.piece == piece.name)].set_index("cache").nll
    assert given[FULL_CACHE] == pytest.approx(losses.item(), abs=1e-4)
    assert given["H2O"] != given[FULL_CACHE] != given["StreamingLLM"]


def test_what_a_cache_adds_and_what_is_claimed_of_it(study: tuple[ExtensionStudy, Path]) -> None:
    asked, folder = study
    caches = {FULL_CACHE: Full(), "H2O": H2O(0.5), "StreamingLLM": StreamingLLM(0.5)}
    rows = through_caches(asked, "A", caches, 48, runs=folder / "runs", progress=False)
    mean = rows.groupby(["method", "cache"]).nll.mean()
    frame = bounded_table(rows, ["yarn ×2, untrained", "full", "sf"]).frame.set_index("trained with")
    untrained = "yarn ×2, untrained"
    adds = {name: mean[name, "H2O"] - mean[name, FULL_CACHE] for name in ("full", "sf", untrained)}
    assert frame.loc["sf", "nats added by H2O"] == pytest.approx(adds["sf"])
    claims = bounded_claims(rows, untrained, "H2O", ["StreamingLLM"], valid=True, model="tiny")
    assert [claim.estimate for claim in claims] == pytest.approx(
        [
            mean[untrained, "H2O"] - mean["sf", "H2O"],
            mean["sf", "H2O"] - mean["full", "H2O"],
            adds["full"] - adds["sf"],
            adds[untrained] - adds["sf"],
            mean["sf", "StreamingLLM"] - mean["sf", "H2O"],
        ]
    )
    for claim in bounded_claims(rows, untrained, "H2O", [], valid=False, model="tiny"):
        assert claim.outcome == "not decided" and claim.reason
    with pytest.raises(ValueError, match="prompt=64: expected less than the 64 tokens"):
        through_caches(asked, "A", caches, 64, runs=folder / "runs")


def test_costs_are_pairs_seen() -> None:
    def spec(pattern: str) -> TrainSpec:
        return TrainSpec(context=64, steps=10, group_size=0.25, pattern=pattern)

    assert attention_cost(spec("full")) == 1
    assert attention_cost(spec("sf")) == pytest.approx(SF.density(4, 64))
    assert attention_cost(spec("sf_then_full")) == pytest.approx(0.9 * SF.density(4, 64) + 0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds=\\(1, 1\\)"),
        ({"contexts": (64, 128)}, "at most the 100 tokens"),
        ({"patterns": ("full", "sf", "sff")}, "sff"),
        ({"patterns": ("full", "s2")}, r"own_attention=\['sf'\]: expected some of patterns=\['full', 's2'\]"),
        ({"test_sets": ("B",)}, "test_sets=\\('B',\\): the recipe's texts are \\['A', 'validation'\\]"),
    ],
)
def test_bad_studies_are_named(
    study: tuple[ExtensionStudy, Path], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(study[0], **changes)  # type: ignore[arg-type]
