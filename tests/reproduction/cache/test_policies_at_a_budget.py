"""All policies at one budget: who stands where, with which interval, by the artists of the figure."""

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer

from sinklora.reproduction.cache.policies_at_a_budget import APART, rivals_figure
from sinklora.reproduction.cache.study import PERPLEXITY
from sinklora.reproduction.cache.text_study import FACTS_LATER
from sinklora.reproduction.names import CACHES

VALUES = {
    (1024, PERPLEXITY): {"full": 20.0, "h2o": 25.0, "replay": 22.0, "local": 80.0},
    (1024, FACTS_LATER): {"full": 0.8, "h2o": 0.1, "replay": 0.7, "local": 0.3},
    (4096, PERPLEXITY): {"full": 18.0, "replay": 19.0},
    (4096, FACTS_LATER): {"full": 0.7, "replay": 0.6},
}


def lines() -> pd.DataFrame:
    """At 20 %, with other budgets that the figure is not about."""
    rows = [
        {"prompt": prompt, "measure": measure, "policy": policy, "value": value, "budget": budget}
        for (prompt, measure), values in VALUES.items()
        for policy, value in values.items()
        for budget in ([1.0] if policy == "full" else [0.2, 0.05])
    ]
    frame = pd.DataFrame(rows)
    frame["value (low)"], frame["value (high)"] = 0.5 * frame.value, 1.5 * frame.value
    frame.loc[frame.budget == 0.05, "value"] = 1e3
    return frame.assign(items=64, clusters=8, chance=0.05)


def bars(axis: Axes) -> list[list[tuple[float, ...]]]:
    """For each length of prompt: place, low, value and high of every mark."""
    drawn = []
    for container in axis.containers:
        assert isinstance(container, ErrorbarContainer)
        data, _, (ends,) = container
        segments = ends.get_segments()
        drawn.append(
            [
                (float(y), float(end[0][0]), float(x), float(end[1][0]))
                for x, y, end in zip(data.get_xdata(), data.get_ydata(), segments, strict=True)
            ]
        )
    return drawn


def test_each_policy_has_its_line_best_first() -> None:
    figure = rivals_figure(lines(), (PERPLEXITY, FACTS_LATER), 0.2, best_by=FACTS_LATER)
    perplexity, facts = figure.axes
    order = ["full", "replay", "local", "h2o"]
    assert [tick.get_text() for tick in perplexity.get_yticklabels()] == [CACHES[name] for name in order]
    for axis, measure in ((perplexity, PERPLEXITY), (facts, FACTS_LATER)):
        assert axis.get_title() == f"{measure}\n(n = 64 in 8 documents)"
        short, long = bars(axis)
        for place, (name, drawn) in enumerate(zip(order, short, strict=True)):
            value = VALUES[1024, measure][name]
            assert drawn == pytest.approx((place, 0.5 * value, value, 1.5 * value))
        for place, (name, drawn) in enumerate(zip(("full", "replay"), long, strict=True)):
            value = VALUES[4096, measure][name]
            assert drawn == pytest.approx((place + APART, 0.5 * value, value, 1.5 * value))
    chance = [line.get_xdata()[0] for line in facts.lines if line.get_color() == "0.7"]
    assert chance == [0.05] and perplexity.get_xscale() == "log"
    assert perplexity.get_ylim()[0] > perplexity.get_ylim()[1]  # the first on top
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1024 tokens", "4096 tokens"]


def test_by_a_measure_of_which_less_is_better_the_least_comes_first() -> None:
    figure = rivals_figure(lines(), (PERPLEXITY,), 0.2, best_by=PERPLEXITY)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names == [CACHES[name] for name in ("full", "replay", "h2o", "local")]


def test_a_third_length_has_its_own_mark_and_count() -> None:
    third = lines()[lines().prompt == 4096].assign(prompt=8192, items=32)
    figure = rivals_figure(pd.concat([lines(), third]), (PERPLEXITY,), 0.2, best_by=PERPLEXITY)
    [axis] = figure.axes
    assert axis.get_title() == f"{PERPLEXITY}\n(n = 32 to 64 in 8 documents)"
    *_, drawn = bars(axis)
    assert [place for place, *_ in drawn] == pytest.approx([2 * APART, 1 + 2 * APART])
    assert len({container[0].get_marker() for container in axis.containers}) == 3
    assert axis.get_ylim()[0] > 3 + 2 * APART  # the last line's third mark is inside


def test_more_lengths_than_marks_are_refused() -> None:
    four = pd.concat([lines(), lines().assign(prompt=8192), lines().assign(prompt=16384)])
    with pytest.raises(ValueError, match="there are marks for 3 lengths"):
        rivals_figure(four, (PERPLEXITY,), 0.2, best_by=PERPLEXITY)
