"""What the pictures of patterns and maps show: visible keys, windows, gradients, weights."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from figure_data import darkness, grey_of, image
from helpers import assert_close
from sinklora.attention.patterns import PATTERNS
from sinklora.reproduction.names import LABELS
from sinklora.reproduction.patterns.figures import (
    FAINTEST,
    leak_figure,
    maps_figure,
    mask_figure,
    segmentation_figure,
)
from sinklora.reproduction.patterns.study import influence, segmentation_steps

NAMES = ["s2_wrapped", "sf", "fixed"]


def hatched(axis: Axes) -> set[tuple[int, int]]:
    """The cells (query, key) with a hatch."""
    return {
        (round(cell.get_y() + 0.5), round(cell.get_x() + 0.5)) for cell in axis.patches if cell.get_hatch()
    }


def future(values: np.ndarray) -> set[tuple[int, int]]:
    """The cells above the diagonal that are not zero."""
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(values, 1)), strict=True)}


def test_masks_are_dark_where_a_query_sees_a_key_and_hatched_in_the_future() -> None:
    axes = mask_figure(NAMES, 16).axes
    for column, name in enumerate(NAMES):
        visible = PATTERNS[name].visible(2, 16).numpy()
        for row, head in enumerate((0, 1)):
            axis = axes[row * len(NAMES) + column]
            assert_close(darkness(axis) > 0.3, visible[head], atol=0)
            assert hatched(axis) == future(visible[head])
        assert axes[column].get_title().replace("\n", " ") == LABELS[name]
    assert hatched(axes[len(NAMES)]), "the shifted head of the wrapped form sees the future"


def test_densities_are_those_of_the_drawn_row_and_of_a_training_row() -> None:
    figure = mask_figure(["full", "sf"], 32, longer=[2048])
    under = [axis.get_xlabel().splitlines() for axis in figure.axes[2:]]
    assert under[0] == ["key (token)", "no windows", "1.00 | 1.00"]
    # Four windows of 8, and 4 sinks for the 24 queries behind the first: of 32 x 33 / 2 pairs. Likewise 512.
    short, long = ((4 * g * (g + 1) / 2 + 4 * 3 * g) / (2 * g * (4 * g + 1)) for g in (8, 512))
    assert under[1] == ["key (token)", "G = 8", f"{short:.2f} | {long:.2f}"] == [*under[1][:2], "0.45 | 0.25"]
    assert figure.get_suptitle() == "N = 32 tokens; below: density at N = 32 | 2048"


@pytest.mark.parametrize(("names", "legend"), [(["sf"], 1), (["sf", "s2_wrapped"], 2)])
def test_the_hatch_is_explained_where_there_is_one(names: list[str], legend: int) -> None:
    figure = mask_figure(names, 16)
    assert len(figure.legends[0].get_texts()) == legend
    assert any(hatched(axis) for axis in figure.axes) == (legend == 2)


def test_each_step_shows_its_tokens_in_order_and_its_windows_in_greys_of_their_own() -> None:
    figure = segmentation_figure(16, 4)
    for axis, (title, tokens, windows) in zip(figure.axes, segmentation_steps(16, 4), strict=True):
        assert axis.get_title(loc="left").replace("\n", " ").endswith(title)
        shown = sorted(axis.texts, key=lambda text: (-text.get_position()[1], text.get_position()[0]))
        assert [int(text.get_text()) for text in shown] == tokens.ravel().tolist()
        cells = sorted(axis.patches, key=lambda cell: (-cell.get_y(), cell.get_x()))
        greys = np.array([grey_of(cell.get_facecolor()) for cell in cells]).reshape(2, 16)
        for row in range(2):
            same = windows[row][1:] == windows[row][:-1]
            assert_close(greys[row][1:] == greys[row][:-1], same, atol=0)
        assert [label.get_text() for label in axis.get_yticklabels()] == [
            "un-shifted\nheads",
            "shifted\nheads",
        ]
        for cell in cells:  # whole, with its edge
            assert axis.viewLim.x0 < cell.get_x() and cell.get_x() + cell.get_width() < axis.viewLim.x1
            assert axis.viewLim.y0 < cell.get_y() and cell.get_y() + cell.get_height() < axis.viewLim.y1


def test_the_leak_is_the_gradient_of_the_last_head_on_one_scale() -> None:
    *axes, scale = leak_figure(NAMES, 8).axes
    most = max(influence(PATTERNS[name], 8)[-1].max().item() for name in NAMES)
    assert scale.get_xlim() == pytest.approx((0, most))
    for axis, name in zip(axes, NAMES, strict=True):
        moved = influence(PATTERNS[name], 8)[-1].numpy()
        assert_close(image(axis), moved, atol=1e-12)
        assert axis.images[0].get_clim() == (0, most), "the same grey is the same gradient in all panels"
        assert darkness(axis)[moved == 0].max() == pytest.approx(0)
        assert hatched(axis) == future(moved)


def test_maps_show_the_head_with_the_strongest_sink() -> None:
    maps = torch.full((2, 3, 80, 80), 1e-3).tril()
    maps[0, 2, 64:, :4], maps[1, 1, 64:, :4] = 0.2, 0.1
    *axes, scale = maps_figure(maps).axes
    assert (scale.get_ylabel(), scale.get_yscale()) == ("attention weight", "log")
    for layer, (axis, head) in enumerate(zip(axes, (2, 1), strict=True)):
        assert axis.get_title() == f"layer {layer}, head {head}"
        assert_close(image(axis), maps[layer, head].numpy().clip(FAINTEST), atol=1e-9)
        assert axis.get_xlim()[0] < -1, "there is room beside the first key's column"
        assert darkness(axis)[70, 0] > darkness(axis)[70, 10] > darkness(axis)[10, 70]
