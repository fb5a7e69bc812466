"""What the figures of the ablations show: gaps by seed, their means and intervals, and the front."""

import math

import pandas as pd

from figure_data import error_bars, unlabelled
from helpers import assert_close
from sinklora.reproduction.ablations.figures import front_figure, sweep_figure

GAPS = {"full": (0.0, 0.0), "short": (5.0, 6.0), "sf": (2.0, 4.0)}
ROWS = pd.DataFrame(
    [
        {"method": method, "seed": seed, "test_set": "A", "context": 64, "perplexity": 10 + seed + gap}
        for method, gaps in GAPS.items()
        for seed, gap in enumerate(gaps)
    ]
)
FRONT = pd.DataFrame(
    [
        ("short", 0.2, 3.0, 2.0, 5.0, 2, True),
        ("s2", 0.25, 4.0, 1.0, 6.0, 2, False),
        ("sf", 0.5, 1.0, math.nan, math.nan, 2, True),
    ],
    columns=["method", "attention cost", "gap to full", "low", "high", "seeds", "best_at_its_cost"],
)


def test_a_sweep_shows_every_seed_and_their_mean() -> None:
    [axis] = sweep_figure(ROWS, 64, {"sink_tokens": {0: "short", 4: "sf"}}).axes
    mean, first, second, zero = unlabelled(axis)
    assert mean == ([0, 1], [5.5, 3.0])
    assert first == ([0, 0], [5.0, 6.0]) and second == ([1, 1], [2.0, 4.0])
    assert zero[1] == [0, 0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "4"]
    assert axis.get_xlabel() == "sink_tokens"


def test_the_front_shows_gaps_with_their_intervals_against_cost() -> None:
    figure = front_figure(FRONT, ["s2"])
    [axis] = figure.axes
    bars = [points[0] for _, points in error_bars(axis)]
    assert_close(bars[0], [0.2, 2.0, 3.0, 5.0], atol=1e-12)
    assert_close(bars[1], [0.25, 1.0, 4.0, 6.0], atol=1e-12)
    assert_close(bars[2], [0.5, 1.0, 1.0, 1.0], atol=1e-12)  # one seed has no interval
    best = unlabelled(axis)[0]
    assert best == ([0.2, 0.5], [3.0, 1.0])
    [name] = axis.texts
    assert name.get_text() == "s2" and tuple(name.xy) == (0.25, 4.0)
