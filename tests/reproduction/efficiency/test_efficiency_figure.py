"""What the figure of training steps shows: costs in multiples of SF-Attn's, the paper's, and the FLOPs'."""

import pandas as pd
import pytest

from figure_data import lines
from helpers import assert_close
from sinklora.reproduction.efficiency.figures import METHODS, efficiency_figure
from sinklora.reproduction.efficiency.study import BASELINE, EAGER_STEP, SF

ROWS = pd.DataFrame(
    [
        (64, BASELINE, 4.0, 2.0, 8.0),
        (64, SF, 2.0, 2.5, 4.0),
        (64, EAGER_STEP, 8.0, 5.0, 8.0),
        (128, BASELINE, 20.0, 5.0, 32.0),
        (128, SF, 8.0, 4.0, 8.0),
        (128, EAGER_STEP, float("nan"), float("nan"), 32.0),
    ],
    columns=["tokens", "method", "seconds", "peak_gib", "needed_tflop"],
)


def test_methods_are_multiples_of_sf_attn() -> None:
    time, memory = efficiency_figure(ROWS, "here: medians of 3 steps").axes
    full, eager = (METHODS[name][0] for name in (BASELINE, EAGER_STEP))
    assert_close(lines(time)[full][1], [4 / 2, 20 / 8], atol=1e-12)
    assert_close(lines(time)["LoRA+, full attention, by its FLOPs"][1], [8 / 4, 32 / 8], atol=1e-12)
    assert_close(lines(memory)[full][1], [2 / 2.5, 5 / 4], atol=1e-12)
    assert lines(time)[eager][1][0] == 4.0, "where it fits in the memory"
    assert [text.get_text() for text in time.get_xticklabels()] == ["64\n2 s", "128\n8 s"]
    assert [text.get_text() for text in memory.get_xticklabels()] == ["64\n2.5 GiB", "128\n4 GiB"]
    assert time.get_title() == "here: medians of 3 steps"
    assert time.get_yscale() == memory.get_yscale() == "log"


def test_methods_stand_apart_and_beside_the_papers_ratio() -> None:
    for axis in efficiency_figure(ROWS, "here").axes:
        full, eager = (lines(axis)[METHODS[name][0]][0] for name in (BASELINE, EAGER_STEP))
        assert [0 < e - f < 0.2 for f, e in zip(full, eager, strict=True)] == [True, True]
        assert {text.get_text(): text.xy[1] for text in axis.texts} == {"paper: 1.8": 1.8, "SF-Attn": 1}
        levels = [line.get_ydata()[0] for line in axis.lines if list(line.get_xdata()) == [0, 1]]
        assert levels[:2] == pytest.approx([1.8, 1.0])
