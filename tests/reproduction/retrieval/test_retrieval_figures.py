"""What the figures of retrieval show: shares, both ends of their intervals, and depths from first to last."""

import numpy as np
import pytest

from figure_data import darkness, error_bars, image, lines
from helpers import assert_close
from pass_keys_by_hand import pass_key_rows
from sinklora.evaluate.statistics import Accuracy
from sinklora.reproduction.names import BASE, LABELS
from sinklora.reproduction.retrieval.figures import CONTEXT_ENDS, KeysPanel, depth_figure, retrieval_figure

RIGHT = {
    BASE: {512: [1] * 4, 1024: [0] * 4},
    "sf": {512: [1, 1, 1, 0], 1024: [0, 1, 0, 0]},
}
ROWS = pass_key_rows(RIGHT)


def test_lines_are_shares_and_bars_are_their_intervals() -> None:
    [axis] = retrieval_figure([KeysPanel("full cache", ROWS, 1024)], [BASE, "sf"]).axes
    shown = dict(error_bars(axis))
    assert list(shown) == [BASE, "sf"]
    for model, right in RIGHT.items():
        for (x, low, share, high), place, trials in zip(shown[model], (0, 1), right.values(), strict=True):
            assert abs(x - place) < 0.5
            assert share == sum(trials) / 4
            assert_close([low, high], Accuracy(sum(trials), 4).interval(), atol=1e-9)
    assert "n = 4 a mark" in axis.get_xlabel()


@pytest.mark.parametrize(("context", "end"), [(256, -0.5), (512, 0.5), (700, 0.5), (1024, 1.5), (4096, 1.5)])
def test_each_panel_says_where_its_context_ends(context: int, end: float) -> None:
    shown = [KeysPanel("full cache", ROWS, 512), KeysPanel("interpolated", ROWS, context)]
    figure = retrieval_figure(shown, [BASE, "sf"])
    ends = [lines(axis)[CONTEXT_ENDS][0] for axis in figure.axes]
    assert ends == [[0.5, 0.5], [end, end]]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == [LABELS[BASE], LABELS["sf"], CONTEXT_ENDS]


def test_models_stand_apart_at_each_length() -> None:
    [axis] = retrieval_figure([KeysPanel("", ROWS, 1024)], [BASE, "sf"]).axes
    (_, base), (_, sf) = error_bars(axis)
    assert [s[0] - b[0] > 0.3 for b, s in zip(base, sf, strict=True)] == [True, True]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["512", "1024"]


@pytest.mark.parametrize("model", [BASE, "sf"])
def test_the_depths_go_down_and_black_is_right(model: str) -> None:
    axis, _ = depth_figure(ROWS, [model]).axes
    share = np.array([RIGHT[model][512], RIGHT[model][1024]], dtype=float).T
    assert_close(image(axis), share, atol=0)
    assert_close(darkness(axis) > 0.5, share > 0.5, atol=0)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "last"]
    assert axis.get_yticks().tolist() == [0, 3]
    assert axis.get_title().replace("\n", " ") == f"{LABELS[model]} (n = 1 a cell)"
    bottom, top = axis.get_ylim()
    assert bottom > top, "the first depth is at the top"
