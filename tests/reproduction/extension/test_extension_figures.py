"""Figures of context extension by the data of their artists."""

import math

import numpy as np
import pandas as pd
from matplotlib.container import ErrorbarContainer

from measured import measured_rows
from sinklora.reproduction.extension.comparison import losses
from sinklora.reproduction.extension.figures import (
    context_figure,
    curves_figure,
    gap_figure,
    losses_figure,
    positions_figure,
    rates_figure,
    sinks_figure,
)
from sinklora.reproduction.extension.tables import rates_table
from sinklora.reproduction.names import LABELS

AT_512 = {"base": [[2.0, 3.0]], "full": [[1.9, 2.9]] * 2, "sf": [[1.9, 2.9]] * 2}
AT_2048 = {"yarn": [[1.9, 2.9]], "full": [[1.5, 2.5]] * 2, "sf": [[1.6, 2.6], [1.8, 2.8]]}
ROWS = measured_rows({512: AT_512, 2048: AT_2048}, untrained=("base", "yarn"))


def test_gaps_have_their_intervals_and_seeds() -> None:
    [axis] = gap_figure(ROWS, ["full", "sf"], 2048, "base").axes
    assert [tick.get_text() for tick in axis.get_yticklabels()] == [LABELS["base"], "yarn", LABELS["sf"]]
    [other] = gap_figure(ROWS, ["full", "sf"], 2048, "yarn").axes
    assert [t.get_text() for t in other.get_yticklabels()] == ["yarn", LABELS["base"], LABELS["sf"]]
    squares = [line for line in axis.lines if line.get_marker() == "s"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in squares], [0.5, 0.4, 0.2])
    drawn = [c.lines[2][0].get_segments()[0] for c in axis.containers if isinstance(c, ErrorbarContainer)]
    leads = [losses(ROWS, "Table 1", 2048).lead("full", name) for name in ("base", "yarn", "sf")]
    assert leads[2].low < leads[2].estimate < leads[2].high
    np.testing.assert_allclose([bar[:, 0] for bar in drawn], [[lead.low, lead.high] for lead in leads])
    np.testing.assert_allclose([bar[:, 1] for bar in drawn], [[0, 0], [1, 1], [2, 2]])
    seeds = [line for line in axis.lines if line.get_marker() == "o"][2]
    np.testing.assert_allclose(seeds.get_xdata(), [0.1, 0.3])
    assert axis.get_title() == "Table 1, 2048 tokens\n2 seeds × 2 documents"


def test_one_seed_has_no_dot_beside_its_mean() -> None:
    firsts = [{name: seeds[:1] for name, seeds in of.items()} for of in (AT_512, AT_2048)]
    rows = measured_rows(dict(zip((512, 2048), firsts, strict=True)), untrained=("base", "yarn"))
    [axis] = gap_figure(rows, ["full", "sf"], 2048, "base").axes
    assert {line.get_marker() for line in axis.lines} & {"o", "s"} == {"s"}


def test_every_way_not_to_train_stands_beside_the_gaps() -> None:
    """What is far off the others' scale as its number: 2 nats above full attention, where others are 0.5."""
    far = measured_rows({2048: {"linear": [[3.5, 4.5]]}}, untrained=("linear",))
    [axis] = gap_figure(pd.concat([ROWS, far]), ["full", "sf"], 2048, "yarn").axes
    assert [t.get_text() for t in axis.get_yticklabels()] == ["yarn", LABELS["base"], "linear", LABELS["sf"]]
    assert [(text.get_text(), text.get_position()[1]) for text in axis.texts] == [("+2.00, off the scale", 2)]
    assert axis.get_xlim()[1] < 2


def test_contexts_have_their_own_ticks_and_methods_their_names() -> None:
    [axis] = context_figure(ROWS, ["base", "yarn", "full", "sf"]).axes
    assert axis.get_xticks().tolist() == [512, 2048]
    lines = [line for line in axis.lines if len(line.get_xdata()) == 2]
    np.testing.assert_allclose(lines[-1].get_ydata(), [math.exp(2.4), np.exp([2.1, 2.3]).mean()])
    assert {text.get_text() for text in axis.texts} == {LABELS["base"], "yarn", LABELS["full"], LABELS["sf"]}
    heights = sorted(np.log(text.xyann[1]) for text in axis.texts)
    assert min(np.diff(heights)) > 0.02


def test_shades_are_of_paired_differences_and_the_base_is_level() -> None:
    [axis] = context_figure(ROWS, ["base", "full", "sf"]).axes
    base, full, sf = axis.lines
    np.testing.assert_allclose(base.get_ydata(), [math.exp(2.5)] * 2)
    shades = [shade.get_paths()[0].vertices[:, 1] for shade in axis.collections]
    assert set(shades[1]) == set(full.get_ydata()), "full attention is what the others are compared with"
    lead = losses(ROWS, "Table 1", 2048).lead("full", "sf")
    ends = sf.get_ydata()[1] * np.exp([lead.low - lead.estimate, lead.high - lead.estimate])
    np.testing.assert_allclose([shades[2].min(), shades[2].max()], ends)


def test_a_height_is_as_many_nats_in_all_panels() -> None:
    other = ROWS.assign(test_set="Table 2", nll=1.0 + ROWS.nll / 3)
    axes = context_figure(pd.concat([ROWS, other]), ["base", "yarn", "full", "sf"]).axes
    spans = [np.diff(np.log(axis.get_ylim())) for axis in axes]
    np.testing.assert_allclose(*spans)
    for axis in axes:
        low, high = axis.get_ylim()
        assert all(low < value < high for line in axis.lines for value in line.get_ydata())


def test_what_is_far_above_the_others_is_named_with_its_value() -> None:
    far = measured_rows({2048: {"linear": [[4.0, 4.0]]}}, untrained=("linear",))
    [axis] = context_figure(pd.concat([ROWS, far]), ["linear", "yarn", "full", "sf"]).axes
    assert axis.get_title().endswith("\nabove: linear (55)")
    assert max(max(line.get_ydata()) for line in axis.lines) < 15


def test_rates_are_a_line_a_pattern() -> None:
    tried = pd.concat(
        [
            measured_rows({2048: {"sf": [[nll, nll]]}}).assign(**{"learning rate": rate})
            for rate, nll in ((0.1, 2.0), (0.3, 1.5))
        ]
        + [ROWS[ROWS.method == "base"].assign(**{"learning rate": math.nan})]
    )
    [axis] = rates_figure(tried).axes
    np.testing.assert_allclose(axis.lines[0].get_xdata(), [0.1, 0.3])
    np.testing.assert_allclose(axis.lines[0].get_ydata(), np.exp([2.0, 1.5]))
    np.testing.assert_allclose(axis.lines[1].get_ydata(), math.exp(2.5))
    assert not axis.get_title()


def test_rates_at_which_training_diverged_are_named_in_place_of_a_point() -> None:
    tried = pd.concat(
        [
            measured_rows({2048: {name: [[nll, nll]]}}).assign(**{"learning rate": rate})
            for name, rate, nll in (("sf", 0.1, 2.0), ("sf", 0.3, math.inf), ("s2", 0.3, math.inf))
        ]
        + [ROWS[ROWS.method == "base"].assign(**{"learning rate": math.nan})]
    )
    [axis] = rates_figure(tried).axes
    assert axis.lines[0].get_xdata().tolist() == [0.1]
    assert axis.get_title() == f"diverged: {LABELS['s2']} at 0.3, {LABELS['sf']} at 0.3"
    assert {text.get_text() for text in axis.texts} == {LABELS["sf"], LABELS["base"]}


def test_rates_stand_beside_every_way_not_to_train() -> None:
    tried = measured_rows({2048: {"sf": [[2.0, 2.0]]}}).assign(**{"learning rate": 0.1})
    at_target = {"yarn": [[2.4, 2.4]], "dynamic": [[2.6, 2.6]], "linear": [[4.0, 4.0]]}
    untrained = measured_rows({512: {"base": [[2.5, 2.5]]}, 2048: at_target}, (*at_target, "base"))
    rows = pd.concat([tried, untrained.assign(**{"learning rate": math.nan})])
    [axis] = rates_figure(rows).axes
    np.testing.assert_allclose([line.get_ydata()[0] for line in axis.lines[1:]], np.exp([2.4, 2.5, 2.6]))
    names = {text.get_text() for text in axis.texts}
    assert names == {LABELS["sf"], "yarn", LABELS["base"], "dynamic"}
    assert axis.get_title() == "above: linear (55)"
    lines = rates_table(rows).frame
    assert lines.method.tolist() == ["yarn", "base", "dynamic", "linear", "sf"]
    np.testing.assert_allclose(lines.nll, [2.4, 2.5, 2.6, 4.0, 2.0])


def test_curves_show_training_and_steps() -> None:
    curves = pd.DataFrame(
        {"method": "sf", "seed": [0, 0, 1, 1], "step": [1, 2, 1, 2], "loss": [3.0, 2.0, 5.0, 4.0]}
    )
    left, right = curves_figure(curves, pd.DataFrame({"steps": [1, 2], "nll": [2.0, 1.0]}), 1.5).axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [4.0, 3.0])
    np.testing.assert_allclose(right.lines[0].get_ydata(), np.exp([2.0, 1.0]))


def by_place(column: str, value: str) -> pd.DataFrame:
    """Two pieces at two places: the base without a seed, SF-Attn with two."""
    return pd.DataFrame(
        [
            {
                "method": method,
                "seed": seed,
                "group": "g",
                "piece": piece,
                column: place,
                value: level + piece,
            }
            for method, seed, level in (("base", pd.NA, 2.0), ("sf", 0, 1.0), ("sf", 1, 1.5))
            for piece in (0, 1)
            for place in (1, 2)
        ]
    ).astype({"seed": "Int64"})


def test_positions_have_a_panel_a_kind_and_the_means_of_seeds_and_pieces() -> None:
    """Nats above full attention: the base leaves the scale behind its context, `linear` is nowhere on it."""
    levels = {
        ("base", pd.NA): (1.5, 6.5),
        ("linear", pd.NA): (4.0, 4.0),
        ("yarn", pd.NA): (1.625, 1.625),
        ("full", 0): (1.0, 1.0),
        ("sf", 0): (1.25, 1.25),
        ("sf", 1): (1.5, 1.5),
    }
    rows = pd.DataFrame(
        [
            {"method": m, "seed": seed, "group": "g", "piece": piece, "position": place, "nll": nats + piece}
            for (m, seed), pair in levels.items()
            for piece in (0, 1)
            for place, nats in zip((1, 2), pair, strict=True)
        ]
    )
    figure = positions_figure({"yarn": rows, "linear": rows[rows.method != "sf"]}, ["full", "sf"], 1)
    yarn, linear = figure.axes
    assert [axis.get_title().split(":")[0] for axis in figure.axes] == ["YaRN positions", "linear positions"]
    assert (
        "2 pieces of 1 documents" in yarn.get_title()
        and "higher up: no training (to +5.5),\nlinear (to +3.0)" in yarn.get_title()
    )
    drawn = {line.get_label(): list(line.get_ydata()) for line in yarn.lines}
    assert (drawn["no training"], drawn[LABELS["sf"]]) == ([0.5], [0.375, 0.375])
    named = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in (yarn, linear)]
    assert named == [["no training", "yarn", LABELS["sf"]], ["no training", "yarn"]], (
        "what was not measured is left out"
    )


def test_sinks_are_shares_in_per_cent_beside_the_uniform_one() -> None:
    rows = by_place("layer", "share")
    [axis] = sinks_figure({"yarn": rows}, ["base", "sf"], 0.02).axes
    np.testing.assert_allclose([line.get_ydata() for line in axis.lines[:2]], [[250, 250], [175, 175]])
    assert axis.lines[2].get_ydata()[0] == 2
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [LABELS["base"], LABELS["sf"]]


def test_losses_have_a_panel_a_kind_of_positions() -> None:
    curves = pd.DataFrame({"method": "full", "seed": 0, "step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]})
    figure = losses_figure({"yarn": curves, "linear": curves})
    assert [axis.get_title().split(":")[0] for axis in figure.axes] == ["YaRN positions", "linear positions"]
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [3, 2, 1])
