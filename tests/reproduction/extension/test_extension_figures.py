"""What the figures of context extension show: gaps by seed, perplexity by context with the range of seeds."""

import numpy as np
import pandas as pd

from figure_data import heights, lines, unlabelled
from helpers import assert_close
from sinklora.reproduction.extension.figures import context_figure, gap_figure
from sinklora.reproduction.names import UNTRAINED

AT = {  # method: perplexity at 32 and 64 tokens, by seed
    "full": [(8.0, 6.0), (9.0, 7.0)],
    "sf": [(8.5, 7.0), (9.5, 10.0)],
    "s2": [(8.0, 8.0), (9.0, 8.0)],
}
ROWS = pd.DataFrame(
    [
        {"method": method, "seed": seed, "test_set": "A", "context": context, "perplexity": value}
        for method, by_seed in {UNTRAINED: [(20.0, 30.0)], **AT}.items()
        for seed, values in enumerate(by_seed)
        for context, value in zip((32, 64), values, strict=True)
    ]
)
ROWS["seed"] = ROWS.seed.where(ROWS.method != UNTRAINED).astype("Int64")


def test_gaps_are_bars_and_seeds_are_dots() -> None:
    [axis] = gap_figure(ROWS, ["full", "sf", "s2"], 32, 64).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["sf", "s2"]
    assert_close(heights(axis), [2.0, 1.5], atol=1e-12)
    sf, s2, zero = unlabelled(axis)
    assert sf == ([0, 0], [1.0, 3.0]) and s2 == ([1, 1], [2.0, 1.0]) and zero[1] == [0, 0]
    assert axis.get_title() == "A (n = 2 seeds)"


def test_lines_are_means_and_shades_reach_from_the_lowest_to_the_highest_seed() -> None:
    [axis] = context_figure(ROWS, ["full", "sf"]).axes
    assert lines(axis) == {"full": ([32, 64], [8.5, 6.5]), "sf": ([32, 64], [9.0, 8.5])}
    _, shade = axis.collections
    [corners] = shade.get_paths()
    for context, low, high in ((32, 8.5, 9.5), (64, 7.0, 10.0)):
        ends = np.unique(corners.vertices[corners.vertices[:, 0] == context, 1])
        assert_close(ends, [low, high], atol=1e-12)
