"""Tables and claims of ablations by hand: leads, shares of a gap, the front of quality against cost."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from figure_data import error_bars, xy
from measured import measured_rows
from sinklora.attention.patterns import PATTERNS
from sinklora.evaluate.step_spec import StepCost
from sinklora.records.tables import part
from sinklora.reproduction.ablations import claims
from sinklora.reproduction.ablations.figures import front_figure, sweep_figure
from sinklora.reproduction.ablations.quality_cost import (
    COST,
    best_at_cost,
    costs_and_gaps,
    front_table,
    front_verdict,
)
from sinklora.reproduction.ablations.study import (
    ablation_study,
    measure_lengths,
    studies_at,
    sweep_methods,
    untrained_at,
)
from sinklora.reproduction.ablations.tables import (
    PAPER_ROWS,
    condition_table,
    published,
    schedule_table,
    sweep_table,
)
from sinklora.reproduction.extension.comparison import NOT_VALID, Losses, losses
from sinklora.reproduction.extension.recipe import read_recipe
from sinklora.reproduction.extension.study import ExtensionStudy
from sinklora.reproduction.extension.tables import ABOVE

PIECES = np.random.default_rng(0).normal(3, 0.5, 32)
ADDED = {  # nats above full attention by seed
    "full": (0.0, 0.1),
    "s2": (0.6, 0.72),
    "short": (0.5, 0.61),
    "sf": (0.2, 0.3),
    "sf(sink_tokens=8)": (0.16, 0.26),
    "sf_then_full": (0.05, 0.16),
}
COSTS = {
    "full": 1.0,
    "s2": 0.235,
    "short": 0.25,
    "sf": 0.253,
    "sf(sink_tokens=8)": 0.256,
    "sf_then_full": 0.33,
}
BLANK = claims.blank_claim("Table 9", "table9", valid=True, model="small")


def found(context: int = 2048) -> Losses:
    by_seed = {name: [(PIECES + nats).tolist() for nats in added] for name, added in ADDED.items()}
    return losses(measured_rows({context: by_seed}), "Table 1", context)


def test_a_sweep_by_hand() -> None:
    methods = {4: "sf", 8: "sf(sink_tokens=8)"}
    made = sweep_table(found(), "sink_tokens", methods, COSTS)
    assert made.frame[ABOVE].tolist() == pytest.approx([0.2, 0.16])
    assert made.written().loc[1].tolist()[:3] == ["8", "sf(sink_tokens=8)", "0.2560"]
    [claim] = claims.sweep_claims(found(), "sink_tokens", methods, BLANK)
    assert claim.sentence == "sink_tokens = 4, as in SF-Attn, is better than sink_tokens = 8"
    assert (claim.outcome, claim.estimate) == ("did not hold", pytest.approx(-0.04))
    assert claims.sweep_claims(found(), "sink_tokens", {8: "sf(sink_tokens=8)"}, BLANK) == []


def test_several_lengths_are_one_family() -> None:
    by_length = {"1024": found(1024), "2048": found()}
    nothing = {"nothing": {"1024": "s2", "2048": "short"}}  # which goes by another name at each length
    made = claims.length_claims(by_length, "sf", ["s2", "short"], [], nothing, BLANK)
    assert [claim.outcome for claim in made] == ["held"] * 4
    assert made[1].sentence == "SF-Attn is better than windows alone at 1024 tokens"
    better = {"nothing": {"1024": "full", "2048": "short"}}  # at 1024 no training is as good as any
    made = claims.length_claims(by_length, "sf", ["s2", "short"], [], better, BLANK)
    assert [claim.outcome for claim in made] == ["not decided"] * 2 + ["held"] * 2
    assert made[0].reason == f"at 1024 tokens {NOT_VALID}"
    costs = {name: {"full": 1.0, "sf": 0.253} for name in by_length}
    table = condition_table(by_length, nothing, ["full", "sf"], costs)
    assert table.frame["trained with"].tolist() == ["nothing", "full", "sf"]
    above = [table.frame[f"{name}: {ABOVE}"].tolist() for name in by_length]
    assert [above[0][0], above[1][0], above[1][2]] == pytest.approx([0.61, 0.505, 0.2])
    assert table.written()["2048: attention cost"].tolist() == ["–", "1.0000", "0.2530"]
    with pytest.raises(ValueError, match="costs="):
        condition_table(by_length, {}, ["sf"], {"1024": COSTS})


def test_training_is_held_against_the_best_of_doing_nothing() -> None:
    by_length = {"1024": found(1024), "2048": found()}
    # The best of "short" and "s2" is "short"; at 2048 tokens "s2" goes by the name of "sf".
    nothing = {"as it is": dict.fromkeys(by_length, "short"), "longer": {"1024": "s2", "2048": "sf"}}
    made = claims.length_claims(by_length, "sf", [], ["full", "s2"], nothing, BLANK)
    assert all(claim.restated for claim in made)
    assert [claim.sentence.partition("training with ")[2] for claim in made] == [
        "full attention is better than none (short) at 1024 tokens",
        "S²-Attn without the leak is better than none (short) at 1024 tokens",
        "full attention is better than none (sf) at 2048 tokens",
        "S²-Attn without the leak is better than none (sf) at 2048 tokens",
    ]
    assert [claim.outcome for claim in made] == ["held", "did not hold"] * 2
    estimates = [0.505, -0.105, 0.2, -0.41]
    assert [claim.estimate for claim in made] == pytest.approx(estimates)


def test_what_doing_nothing_is_called_at_each_length() -> None:
    names = untrained_at(read_recipe("configs/recipes/embedded.yaml"), [1024, 2048])
    assert list(names.values()) == [
        {"1024": "base", "2048": "base"},
        {"1024": "yarn ×2, untrained", "2048": "yarn ×4, untrained"},
    ]


def test_a_recipe_that_does_not_count_decides_nothing() -> None:
    blank = claims.blank_claim("Table 9", "table9", valid=False, model="small")
    made = claims.length_claims({"2048": found()}, "sf", ["s2"], [], {"nothing": {"2048": "short"}}, blank)
    assert [(claim.outcome, claim.reason) for claim in made] == [("not decided", NOT_VALID)]


def test_a_schedule_closes_a_share_of_the_gap() -> None:
    made = schedule_table(found(), ["sf", "sf_then_full"], COSTS)
    share = (0.25 - 0.105) / (0.25 - 0.05)
    assert made.frame.loc[1, "of SF-Attn's gap closed (%)"] == pytest.approx(100 * share)
    assert made.frame.loc[1, "cost, times SF-Attn's"] == pytest.approx(0.33 / 0.253)
    [claim] = claims.schedule_claims(found(), ["sf_then_full"], COSTS, BLANK)
    assert "at 1.30 times the attention cost, is better than SF-Attn" in claim.sentence
    assert claim.outcome == "held"


def test_a_share_of_no_gap_has_no_interval() -> None:
    """SF-Attn's gap to full attention is not surely above 0: a share of it can be anything."""
    chance = np.random.default_rng(1).normal(0, 0.5, 32)
    measured = Losses({**found().by_method, "sf": found().by_method["full"] + 0.001 + 0.1 * chance})
    line = schedule_table(measured, ["sf", "sf_then_full"], COSTS).frame.loc[1]
    ends = line[["of SF-Attn's gap closed (%) (low)", "of SF-Attn's gap closed (%) (high)"]]
    assert ends.isna().all()


def test_the_front_by_hand() -> None:
    front = costs_and_gaps(found(), COSTS)
    assert front.method.tolist() == ["s2", "short", "sf", "sf(sink_tokens=8)", "sf_then_full", "full"]
    assert front.best_at_its_cost.tolist() == [True] * 6
    assert best_at_cost(front, 0.253) == "sf"
    with pytest.raises(ValueError, match=r"most=0\.1"):
        best_at_cost(front, 0.1)
    text = front_verdict(found(), COSTS)
    assert "no more than SF-Attn's cost: sf, +0.200 nats" in text and "better than every other one" in text


def test_what_is_dearer_and_worse_is_not_on_the_front() -> None:
    """Worse than SF-Attn, at more than its cost."""
    measured = Losses({**found().by_method, "blocks": found().by_method["sf"] + 0.05})
    costs = {**COSTS, "blocks": 0.3}
    front = costs_and_gaps(measured, costs)
    best = front.set_index("method").best_at_its_cost
    assert not best["blocks"] and best.drop("blocks").all()
    unbeaten = front_verdict(measured, costs).rpartition("than: ")[2].rstrip(".").split(", ")
    assert unbeaten == [name for name in front.method if name != "blocks"]
    [axis] = front_figure(front, [], "2 seeds").axes
    [line] = [xy(line) for line in axis.lines if len(xy(line)[0]) > 1]
    on_it = front[front.method != "blocks"]
    np.testing.assert_allclose(line, on_it[[COST, ABOVE]].to_numpy(float).T)


def test_measured_steps_stand_beside_the_pairs_seen() -> None:
    steps = {"full": StepCost(2.0, 3 * 2**29), "sf": StepCost(1.25, None)}
    written = front_table(costs_and_gaps(found(), COSTS, steps)).written().set_index("method")
    assert written.loc["full"].tolist()[1:3] == ["2.00", "1.50"]
    assert written.loc["sf"].tolist()[1:3] == ["1.25", "–"]
    assert written.loc["s2"].tolist()[1:3] == ["–", "–"], "not measured"
    assert "seconds a step" not in front_table(costs_and_gaps(found(), COSTS)).written()


def test_methods_that_cannot_be_told_apart_are_named() -> None:
    costs = {"full": 1.0, "sf": 0.25, "other": 0.25}
    chance = np.random.default_rng(1).normal(0, 0.3, (2, 32))
    given = found()
    same = Losses({**given.by_method, "other": given.by_method["sf"] + 0.001 + chance - chance.mean()})
    assert "not told apart from it: other" in front_verdict(same, costs)


def test_sweeps_name_known_patterns() -> None:
    assert sweep_methods("sink_tokens", [0, 4, 8]) == {0: "short", 4: "sf", 8: "sf(sink_tokens=8)"}
    shifted = sweep_methods("shifted", [0.0, 0.25])
    assert shifted[0.0] in PATTERNS and shifted[0.25].startswith("sf(")


@pytest.mark.parametrize("item", PAPER_ROWS)
def test_published_values_are_found(item: str) -> None:
    values = published(item)
    assert set(values) == set(PAPER_ROWS[item])
    assert values["s2_wrapped"] == 9.09


def test_an_ablation_reads_one_set_at_the_trained_context() -> None:
    recipe = read_recipe("configs/recipes/smoke.yaml")
    study = ablation_study(recipe, ["sf", "s2"], (0, 1), context=512 + 128, steps=3)
    assert (study.patterns, study.contexts, study.test_sets) == (("full", "sf", "s2"), (640,), ("Table 1",))
    assert {(spec.context, spec.steps) for spec in study.specs()} == {(640, 3)}


def test_the_figures_show_means_and_intervals(tmp_path: Path) -> None:
    methods = {4: "sf", 8: "sf(sink_tokens=8)"}
    [axis] = sweep_figure(found(), {"sink_tokens": methods}).axes
    squares = next(line for line in axis.lines if line.get_marker() == "s")
    np.testing.assert_allclose(squares.get_ydata(), [0.2, 0.16])
    leads = [found().lead("full", method) for method in methods.values()]
    [(_, bars)] = error_bars(axis)
    np.testing.assert_allclose([bar[1:] for bar in bars], [[x.low, x.estimate, x.high] for x in leads])
    assert axis.get_xlabel() == "sink tokens"
    front = costs_and_gaps(found(), COSTS)
    [axis] = front_figure(front, ["sf", "s2"], "2 seeds").axes
    drawn = [bar for _, bars in error_bars(axis) for bar in bars]
    ends = front[[COST, part(ABOVE, "low"), ABOVE, part(ABOVE, "high")]]
    np.testing.assert_allclose(drawn, ends.to_numpy(float))
    assert (ends[part(ABOVE, "low")] < ends[part(ABOVE, "high")]).any()
    assert [text.get_text() for text in axis.texts] == ["S²-Attn without the leak", "SF-Attn"]
    assert axis.get_xscale() == "log" and axis.get_yscale() == "linear"


def test_lengths_are_measured_each_at_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_piece(study: ExtensionStudy, *, runs: Path) -> pd.DataFrame:
        (length,) = study.contexts
        rows = pd.DataFrame({"method": ["base", "sf"], "context": [512, length], "nll": [3.0, 1 / length]})
        rows.attrs = {"data": {"Table 1": {}}, "runs": [{"run": "base"}, {"run": f"sf-{length}"}]}
        return rows

    monkeypatch.setattr("sinklora.reproduction.ablations.study.measure", one_piece)
    recipe = read_recipe("configs/recipes/smoke.yaml")
    rows = measure_lengths(studies_at(recipe, ["sf"], [0], [640, 1024]), runs=Path("runs"))
    assert list(zip(rows.method, rows.context, strict=True)) == [("base", 512), ("sf", 640), ("sf", 1024)]
    assert [record["run"] for record in rows.attrs["runs"]] == ["base", "sf-640", "sf-1024"]
    assert rows.attrs["data"] == {"Table 1": {}}
