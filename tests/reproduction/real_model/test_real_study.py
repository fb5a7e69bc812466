"""The study of a pretrained model as tasks: what a notebook then reads was all made by them."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from recipes import functions, tiny_data
from sinklora.reproduction.extension.recipe import Recipe
from sinklora.reproduction.extension.selection import chosen_rates
from sinklora.reproduction.extension.study import measure
from sinklora.reproduction.extension.texts import TextSet
from sinklora.reproduction.real_model.mechanism import by_position, sink_mass, sink_table
from sinklora.reproduction.real_model.study import RealStudy, keys_table, study_of, tasks
from sinklora.reproduction.report.experiments import declared_parameters, load_experiments
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> RealStudy:
    folder = tmp_path_factory.mktemp("real")
    texts = functions(12, 40)
    source, base = tiny_data(folder, texts, (4, 8), positions=32)
    training = TrainSpec(
        base=base,
        corpus=CorpusSpec(source),
        context=96,
        steps=2,
        batch_size=1,
        micro_batch_size=1,
    )
    read = {"validation": ("validation", 2), "Table 1": ("test", 3), "few": ("test", 2)}
    recipe = Recipe(
        training=training,
        original_context=32,
        texts={name: TextSet(CorpusSpec(source, split), n, 96) for name, (split, n) in read.items()},
        stride=32,
        grid=(0.001, 0.1),
        widenings=0,
    )
    return RealStudy(recipe, ("full", "sf"), ("yarn", "linear"), (0, 1), (32, 96), ("sf",), "few", 16, 80)


def test_all_is_named_in_an_order_that_tells_most_first(study: RealStudy, tmp_path: Path) -> None:
    names = [name for name, _ in tasks(study, runs=tmp_path)]
    assert len(set(names)) == len(names) == 2 + 2 * 2 * 2 + 2 * 2 * 2 + 2 * 2
    assert names[:3] == ["untrained, validation", "untrained, Table 1", "yarn, full, rate 0.001"]
    assert names[-1] == "linear, sf, inside" and names.index("linear, sf, rate 0.1") == 9


def test_tasks_make_all_that_is_read(study: RealStudy, tmp_path: Path) -> None:
    study = replace(study, positions=("linear",), seeds=(0,))
    named = dict(tasks(study, runs=tmp_path))
    for task in named.values():
        task()

    made = sorted(path.name for path in tmp_path.iterdir())
    for positions in study.positions:
        found = study.at_best_rates(positions, runs=tmp_path)
        rows = measure(found, runs=tmp_path, progress=False)
        assert set(rows[rows.seed.notna()].method) == {"full", "sf"}
        first = study.of_first_seed(found)
        assert set(measure(first, runs=tmp_path, progress=False).attention) == {"full", "own"}
        by_position(first, study.few, study.bucket, runs=tmp_path, progress=False)
        sink_mass(first, study.few, study.sink_tokens, runs=tmp_path, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == made, "nothing was made for it"


def test_each_pattern_is_read_at_its_own_best_rate(study: RealStudy, tmp_path: Path) -> None:
    rows = study.rates("linear", runs=tmp_path)
    best = chosen_rates(rows).set_index("method")["learning rate"]
    found = study.at_best_rates("linear", runs=tmp_path)
    assert found.recipe.training.rope == "linear" and found.seeds == (0, 1)
    first = study.of_first_seed(found)
    assert (first.seeds, first.own_attention) == ((0,), ("sf",)), "one seed's models are looked into"
    assert {name: found.recipe.rate(name) for name in study.patterns} == best.to_dict()
    assert set(best) <= {0.001, 0.1}


def test_sinks_stand_beside_the_bases_with_what_needs_no_training() -> None:
    """Two documents, the first of two pieces; two seeds, which are 10 and 20 points above the base."""
    shares = {
        ("base", pd.NA): (0.1, 0.3, 0.4),
        ("yarn", pd.NA): (0.2, 0.4, 0.5),
        ("sf", 0): (0.2, 0.4, 0.5),
        ("sf", 1): (0.3, 0.5, 0.6),
    }
    rows = pd.DataFrame(
        [
            {
                "method": method,
                "seed": seed,
                "group": group,
                "piece": piece,
                "layer": layer,
                "share": share + layer,
            }
            for (method, seed), of_pieces in shares.items()
            for (group, piece), share in zip((("a", "1"), ("a", "2"), ("b", "1")), of_pieces, strict=True)
            for layer in (-0.05, 0.05)
        ]
    ).astype({"seed": "Int64"})
    table = sink_table(rows, ["sf"]).frame.set_index("trained with")
    assert list(table.index) == ["base", "yarn", "sf"]
    assert table["first 4 tokens (%)"].to_list() == pytest.approx([30, 40, 45])
    above = table["points above the base"]
    assert above.isna()["base"] and above[["yarn", "sf"]].to_list() == pytest.approx([10, 15])
    assert table["points above the base (low)"]["sf"] < 10 < 20 < table["points above the base (high)"]["sf"]


def test_wrong_fields_are_named_before_anything_runs(study: RealStudy) -> None:
    with pytest.raises(ValueError, match="few='many'"):
        replace(study, few="many")
    with pytest.raises(ValueError, match="sink_tokens=64"):
        replace(study, sink_tokens=64)


def test_the_notebooks_parameters_are_a_study() -> None:
    [experiment] = [found for found in load_experiments() if found.notebook == "09_real_model"]
    declared = declared_parameters(Path("notebooks/09_real_model.ipynb"))
    for profile, given in experiment.parameters.items():
        found = study_of(declared | given)
        assert found.seeds == tuple((declared | given)["seeds"]), profile


def test_keys_are_counted_by_method_and_length() -> None:
    rows = pd.DataFrame(
        {
            "method": ["base", "base", "base", "sf"],
            "tokens": [100, 100, 200, 100],
            "nats": [1.0, 3.0, 5.0, 0.5],
            "correct": [True, False, False, True],
        }
    )
    table = keys_table(rows).set_index(["method", "tokens"])
    assert table.loc[("base", 100)].tolist() == [2.0, 1, 2]
    assert table.loc[("base", 200)].tolist() == [5.0, 0, 1]
    assert table.loc[("sf", 100)].tolist() == [0.5, 1, 1]
