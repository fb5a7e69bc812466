"""What the figure of training steps shows: measured seconds and memory, and what the FLOPs would give."""

import pandas as pd

from figure_data import lines, unlabelled
from helpers import assert_close
from sinklora.reproduction.efficiency.figures import efficiency_figure
from sinklora.reproduction.efficiency.study import BASELINE, SF

ROWS = pd.DataFrame(
    [
        (64, BASELINE, 4.0, 2.0, 8.0),
        (64, SF, 3.0, 2.5, 4.0),
        (128, BASELINE, 20.0, 5.0, 32.0),
        (128, SF, 9.0, 4.0, 8.0),
    ],
    columns=["tokens", "method", "seconds", "peak_gib", "needed_tflop"],
)


def test_measurements_are_lines_and_the_ideal_is_scaled_to_full_attention() -> None:
    time, memory = efficiency_figure(ROWS, "here").axes
    assert lines(time) == {BASELINE: ([64, 128], [4.0, 20.0]), SF: ([64, 128], [3.0, 9.0])}
    full, sf = unlabelled(time)
    assert full == ([64, 128], [4.0, 20.0])  # full attention's own time is the scale
    assert_close(sf[1], [4 / 8 * 4.0, 8 / 32 * 20.0], atol=1e-12)
    assert [points[1] for points in unlabelled(memory)] == [[2.0, 5.0], [2.5, 4.0]]
    assert (time.get_ylabel(), memory.get_ylabel()) == ("seconds a step", "peak memory (GiB)")
    assert time.get_xscale() == time.get_yscale() == memory.get_yscale() == "log"
