"""Tables of ablations by hand: costs, paired leads, shares of a gap, the front of quality against cost."""

import dataclasses
import math
from pathlib import Path

import pandas as pd
import pytest

from sinklora.attention.patterns import PATTERNS, SF
from sinklora.reproduction.ablations.by_seed import closed_gap, perplexities
from sinklora.reproduction.ablations.figures import front_figure, sweep_figure
from sinklora.reproduction.ablations.quality_cost import best_at_cost, costs_and_gaps, front_verdict
from sinklora.reproduction.ablations.study import AblationStudy, attention_costs, sweep_methods
from sinklora.reproduction.ablations.tables import (
    ablation_table,
    condition_table,
    schedule_table,
    sweep_table,
)
from sinklora.reproduction.ablations.verdict import (
    condition_verdict,
    order_verdict,
    schedule_verdict,
    sweep_verdict,
)
from sinklora.reproduction.patterns.study import pattern_names
from sinklora.train.pattern_schedules import PATTERN_SCHEDULES
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec

VALUES = {  # method: perplexity at 2048 by seed
    "full": (10.0, 11.0),
    "s2": (16.0, 17.2),
    "short": (15.0, 16.1),
    "sf": (12.0, 13.0),
    "sf(sink_tokens=8)": (11.6, 12.5),
    "sf_then_full": (10.5, 11.6),
}


def rows(values: dict[str, tuple[float, ...]] = VALUES, context: int = 2048) -> pd.DataFrame:
    """Measurements as `extension.measure` gives them; at 512 tokens everything is 20."""
    return pd.DataFrame(
        [
            {"method": method, "seed": seed, "test_set": "A", "context": length, "perplexity": perplexity}
            for method, found in values.items()
            for seed, value in enumerate(found)
            for length, perplexity in ((512, 20.0), (context, value))
        ]
    )


def test_costs_are_densities_and_curricula_are_means_over_steps() -> None:
    training = TrainSpec(context=64, steps=10, group_size=0.25)
    costs = attention_costs(training, ["full", "sf", "sf_then_full", "sf(group_size=0.5)"])
    assert costs["full"] == 1
    assert costs["sf"] == pytest.approx(SF.density(4, 64))
    assert costs["sf_then_full"] == pytest.approx(0.9 * SF.density(4, 64) + 0.1)
    assert costs["sf(group_size=0.5)"] == pytest.approx(
        dataclasses.replace(SF, group_size=0.5).density(4, 64)
    )
    smaller = attention_costs(dataclasses.replace(training, group_size=0.125), ["full", "sf"])
    assert smaller["full"] == 1 and smaller["sf"] < costs["sf"]


def test_perplexities_are_one_column_a_method() -> None:
    assert perplexities(rows(), 2048).loc[1, "sf"] == 13.0
    with pytest.raises(ValueError, match="context=4096"):
        perplexities(rows(), 4096)
    with pytest.raises(ValueError, match="measured twice"):
        perplexities(pd.concat([rows(), rows()]), 2048)


def test_an_ablation_shows_gaps_and_leads_paired_by_seed() -> None:
    labels = {"sf": "SF-Attn", "s2": "S²-Attn", "full": "full", "fixed": "never run"}
    made = ablation_table(rows(), 2048, labels, reference="s2", item="Table 7")
    numbers = made.frame.set_index("name")
    assert numbers.loc["sf", "gap to full"] == 2 and numbers.loc["sf", "lower than s2 by"] == pytest.approx(
        4.1
    )
    assert numbers.loc["sf", "lower than s2 by (low)"] == pytest.approx(2.8294, abs=1e-3)
    assert numbers.loc["sf", "paper"] == 8.64 and math.isnan(numbers.loc["s2", "paper"])
    assert math.isnan(numbers.loc["full", "gap to full"]) and math.isnan(numbers.loc["fixed", "gap to full"])
    table = made.written().set_index("name")
    assert table.loc["sf", "gap to full"] == "2.00 ± 0.00"
    assert table.loc["sf", "lower than s2 by"] == "4.10 ± 0.14"
    # mean 4.1, standard deviation 0.1414, t(1) = 12.706: 4.1 ± 12.706 * 0.1414 / sqrt(2)
    assert table.loc["sf", "95 % interval"] == "2.83 to 5.37"
    assert table.loc["sf", "paper"] == "8.64" and table.loc["s2", "paper"] == "–"
    assert table.loc["full", "gap to full"] == "–" and table.loc["s2", "lower than s2 by"] == "–"
    assert table.loc["fixed", "seeds"] == "0" and table.loc["fixed", "perplexity at 2048"] == "–"


def test_the_papers_order_is_judged_pair_by_pair() -> None:
    labels = {"sf": "A", "short": "B", "s2": "C"}
    said = order_verdict(rows(), 2048, ["sf", "short", "s2"], labels)
    assert said.startswith("Held: A before B; perplexity lower by 3.05")
    assert "Held: B before C" in said
    assert "Did not hold: C before A" in order_verdict(rows(), 2048, ["s2", "sf"], labels)
    one = {method: values[:1] for method, values in VALUES.items()}
    assert "Not decided (one seed): A before B" in order_verdict(rows(one), 2048, ["sf", "short"], labels)


def test_conditions_stand_side_by_side() -> None:
    measured = {"1024": rows({"full": (9.0,), "sf": (9.5,), "s2": (9.4,)}, 1024), "2048": rows()}
    methods = ["full", "sf", "s2"]
    costs = {"1024": dict.fromkeys(methods, 0.2566), "2048": {"full": 1.0, "sf": 0.2533, "s2": 0.23}}
    made = condition_table(measured, methods, costs)
    assert made.frame["2048: gap to full"].tolist()[1:] == pytest.approx([2.0, 6.1])
    assert made.frame["1024: seeds"].tolist() == [1, 1, 1] and made.frame["2048: seeds"].tolist() == [2, 2, 2]
    table = made.written().set_index("trained with")
    assert table.loc["sf", "1024: gap to full"] == "0.50"
    assert table.loc["sf", "2048: gap to full"] == "2.00 ± 0.00"
    assert table.loc["sf", "1024: attention cost"] == "0.2566"
    assert table.loc["sf", "2048: attention cost"] == "0.2533"
    with pytest.raises(ValueError, match="expected those of the conditions"):
        condition_table(measured, methods, {"2048": costs["2048"]})
    said = condition_verdict(measured, "sf", "s2")
    assert "1024: not decided (one seed), sf is higher by 0.10" in said
    assert "2048: held, sf is lower by 4.10" in said


def test_sweeps_name_the_best_value() -> None:
    methods = {0: "short", 4: "sf", 8: "sf(sink_tokens=8)"}
    costs = {"short": 0.25, "sf": 0.253, "sf(sink_tokens=8)": 0.256}
    made = sweep_table(rows(), 2048, "sink_tokens", methods, costs)
    assert made.frame.sink_tokens.tolist() == [0, 4, 8]
    assert made.frame["gap to full"].tolist() == pytest.approx([5.05, 2.0, 1.55])
    table = made.written().set_index("sink_tokens")
    assert table.loc["8", "gap to full"] == "1.55 ± 0.07" and table.loc["0", "attention cost"] == "0.250"
    assert sweep_verdict(rows(), 2048, "sink_tokens", methods).startswith(
        "Lowest mean perplexity with sink_tokens = 8. Not decided: better than SF-Attn's 4"
    )
    assert sweep_verdict(rows(), 2048, "sink_tokens", {0: "short", 4: "sf"}).endswith("4, as in SF-Attn.")
    assert sweep_figure(rows(), 2048, {"sink_tokens": methods}).axes


def test_the_best_of_several_values_is_judged_by_a_wider_interval() -> None:
    # Leads of 0.10, 0.12 and 0.20: mean 0.14, standard deviation 0.0529, t(2) = 4.303 at 95 %: 0.01 to 0.27.
    # Picked from three, at 97.5 %: t(2) = 6.205 and -0.05 to 0.33.
    values = {"short": (9.0, 9.0, 9.0), "sf": (8.0, 8.0, 8.0), "sf(sink_tokens=8)": (7.9, 7.88, 7.8)}
    methods = {4: "sf", 8: "sf(sink_tokens=8)"}
    said = sweep_verdict(rows(values), 2048, "sink_tokens", methods)
    assert "Held: better" in said and "(95 % t-interval 0.01 to 0.27)" in said and "Bonferroni" not in said
    said = sweep_verdict(rows(values), 2048, "sink_tokens", {0: "short", **methods})
    assert "Not decided: better" in said and "(97.5 % t-interval -0.05 to 0.33)" in said
    assert said.endswith("corrected (Bonferroni) for 2 comparisons.")


def test_sweeps_reuse_the_names_of_patterns() -> None:
    assert sweep_methods("sink_tokens", [0, 2, 4]) == {0: "short", 2: "sf(sink_tokens=2)", 4: "sf"}
    assert sweep_methods("shifted_fraction", [0.5]) == {0.5: "sf_shifted"}
    # The name that measurements made before are filed under.
    assert sweep_methods("shifted", [0.25, 0.5]) == {0.25: "sf(shifted=0.25)", 0.5: "sf_shifted"}
    assert sweep_methods("group_size", [0.25]) == {0.25: "sf"}
    with pytest.raises(ValueError, match="sink_tokens"):
        sweep_methods("sink_tokens", [-1])


def test_the_front_holds_what_nothing_beats_at_its_cost() -> None:
    costs = {"full": 1.0, "sf": 0.25, "s2": 0.23, "short": 0.25, "sf_then_full": 0.325}
    front = costs_and_gaps(rows(), 2048, costs).set_index("method")
    assert front.index.tolist() == ["s2", "sf", "short", "sf_then_full", "full"]
    assert front.best_at_its_cost.tolist() == [True, True, False, True, True]
    assert front.loc["sf", "gap to full"] == 2 and front.loc["sf", "low"] == pytest.approx(2)
    assert best_at_cost(front.reset_index(), 0.25) == "sf"
    assert best_at_cost(front.reset_index(), 1.3 * 0.25) == "sf_then_full"
    with pytest.raises(ValueError, match=r"most=0\.1"):
        best_at_cost(front.reset_index(), 0.1)
    assert front_figure(front.reset_index(), ["sf"]).axes
    one = costs_and_gaps(rows({m: v[:1] for m, v in VALUES.items()}), 2048, costs)
    assert math.isnan(one.low[0]) and front_figure(one, ["sf"]).axes


def test_the_best_at_a_cost_stands_beside_what_it_is_not_told_apart_from() -> None:
    values = {
        "full": (10.0, 10.0, 10.0),
        "sf": (12.0, 12.1, 11.9),
        "random": (12.1, 12.0, 12.1),
        "s2": (20.0, 20.1, 19.9),
    }
    costs = {"full": 1.0, "sf": 0.25, "random": 0.25, "s2": 0.23}
    said = front_verdict(rows(values), 2048, costs)
    # 2 ± 4.303 * 0.1 / sqrt(3)
    assert "no more than SF-Attn's cost: sf, gap to full 2.00 ± 0.10 (95 % t-interval 1.75 to 2.25)" in said
    assert "not told apart from it: random (paired 97.5 % t-intervals, corrected for 2 comparisons)" in said
    assert said.endswith("On average nothing is better at its cost than: s2, sf, full.")
    alone = front_verdict(rows(values), 2048, {"full": 1.0, "sf": 0.25, "s2": 0.23})
    assert "better than every other one (paired 95 % t-intervals" in alone
    one = front_verdict(rows({name: found[:1] for name, found in values.items()}), 2048, costs)
    assert "sf, gap to full 2.00 (one seed, not decided)" in one


def test_the_second_limit_is_1_3_times_the_cost_of_sf() -> None:
    values = {"full": (10.0, 10.0), "sf": (12.0, 12.1), "random": (11.0, 11.1), "s2": (10.5, 10.6)}
    said = front_verdict(rows(values), 2048, {"full": 1.0, "sf": 0.25, "random": 0.325, "s2": 0.326})
    assert "no more than SF-Attn's cost: sf," in said and "no more than 1.3 times that: random," in said


def test_a_schedule_closes_a_share_of_the_gap_at_a_cost() -> None:
    # seed 0: (12 - 10.5) / (12 - 10) = 75 %; seed 1: (13 - 11.6) / (13 - 11) = 70 %
    assert closed_gap(rows(), 2048, "sf_then_full").tolist() == pytest.approx([75, 70])
    costs = {"sf": 0.25, "sf_then_full": 0.325}
    made = schedule_table(rows(), 2048, ["sf", "sf_then_full"], costs)
    assert made.frame["of SF-Attn's gap closed (%)"].tolist() == pytest.approx([0, 72.5])
    assert made.frame["cost, times SF-Attn's"].tolist() == pytest.approx([1, 1.3])
    assert made.written()["of SF-Attn's gap closed (%)"].tolist() == ["0.0 ± 0.0", "72.5 ± 3.5"]
    dear = {"sf": 0.25, "sf_then_full": 0.326}  # more than 1.3 times
    assert schedule_verdict(rows(), 2048, ["sf_then_full"], dear).startswith("Not reached")


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((65, 66, 67), "Reached: sf_then_full closes 66 %"),
        (
            (20, 60, 110),
            "Reached on average, not decided: sf_then_full closes 63 % of the gap (95 % t-interval -49",
        ),
        ((20, 50, 100), "Not reached on average, not decided: "),
        ((20, 21, 22), "Not reached: "),
        ((75,), "Reached by one seed: sf_then_full closes 75 % of the gap (one seed)"),
        ((60.5,), "Reached by one seed: "),
        ((59.5,), "Not reached by one seed: "),
        ((20,), "Not reached by one seed: "),
    ],
)
def test_a_goal_is_reached_where_the_interval_says_so(shares: tuple[float, ...], said: str) -> None:
    values = {
        "full": (10.0,) * len(shares),
        "sf": (12.0,) * len(shares),
        "sf_then_full": tuple(12 - share / 50 for share in shares),
    }
    costs = {"sf": 0.25, "sf_then_full": 0.325}
    assert schedule_verdict(rows(values), 2048, ["sf_then_full"], costs).startswith(said)


def test_a_study_trains_full_attention_beside_every_method() -> None:
    study = AblationStudy(TrainSpec(context=1024), (0, 1), CorpusSpec(split="test"), 512, 256, 2, 2048)
    extension = study.extension(["sf", "full", "s2"], context=2048, steps=3)
    assert extension.patterns == ("full", "sf", "s2")
    assert extension.contexts == (512, 2048)
    assert {(spec.context, spec.steps) for spec in extension.specs()} == {(2048, 3)}
    with pytest.raises(ValueError, match="'sff'"):
        study.extension(["sff"])


def test_a_condition_has_costs_of_its_own() -> None:
    study = AblationStudy(TrainSpec(context=2048), (0,), CorpusSpec(split="test"), 512, 256, 2, 2048)
    methods = ["sf", "sf_growing"]
    # Sinks weigh more in shorter rows; 22 % of 30 steps is 7 whole ones, of 60 steps 13.
    usual, shorter, fewer = (
        study.costs(methods),
        study.costs(methods, context=1024),
        study.costs(methods, steps=30),
    )
    assert usual == pytest.approx({"sf": 0.2533, "sf_growing": 0.3176}, abs=5e-5)
    assert shorter["sf"] == pytest.approx(0.2566, abs=5e-5)
    assert fewer == pytest.approx({"sf": 0.2533, "sf_growing": 0.3321}, abs=5e-5)


def test_the_notebook_gives_each_condition_the_costs_of_its_training() -> None:
    source = Path("notebooks/08_ablations.ipynb").read_text(encoding="utf-8")
    assert "study.costs(others, context=length)" in source and "study.costs(usual, steps=count)" in source


@pytest.mark.parametrize("name", [*PATTERNS, *PATTERN_SCHEDULES])
def test_everything_that_can_be_trained_has_a_cost(name: str) -> None:
    assert 0 < attention_costs(TrainSpec(context=256, steps=60), [name])[name] <= 1


def test_a_notebook_names_every_pattern_and_schedule() -> None:
    source = Path("notebooks/08_ablations.ipynb").read_text(encoding="utf-8")
    names = [*pattern_names(windows=True), *PATTERN_SCHEDULES]
    assert all(f'\\"{name}\\"' in source for name in names)
    assert "sparse = pattern_names(windows=False)" in source  # the others are read from the registry
