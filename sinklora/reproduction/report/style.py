"""How figures look: sizes, fonts, and the line and mark of every method."""

import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sinklora.reproduction.names import BASE, UNTRAINED

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.8  # inches

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib settings of every figure here: readable in print at column width; lines differ by style,
    not by colour.
    """
    with plt.rc_context(STYLE):
        yield
        interactive = plt.isinteractive()
    # The first figure of a notebook brings up a backend that is interactive; without that, which leaving the
    # context would undo, no later figure is shown.
    plt.interactive(interactive)


def panels(
    count: int, height: float = 2.2, columns: int = 0, width: float = 0.0, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, `columns` of them side by side (0: all), each row `height` inches high.

    `width` in inches; 0: one column where panels stand below each other, both columns of the page otherwise.
    """
    columns = columns or count
    rows = -(-count // columns)
    size = (width or (COLUMN_WIDTH if columns == 1 else PAGE_WIDTH), height * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    axes = list(grid.flatten())
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def square_panels(
    rows: int, columns: int, width: float, *, beside: float, above: float
) -> tuple[Figure, list[list[Axes]]]:
    """A grid of square panels in a figure `width` inches wide and as high as they make it, without bands.

    `beside` and `above`: inches that labels, titles and scales take of the width, and add to the height.
    """
    height = (width - beside) / columns * rows + above
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(width, height),
        squeeze=False,
        layout="compressed",
        gridspec_kw={"wspace": 0.1},
    )
    return figure, [list(row) for row in grid]


def framed(axis: Axes) -> None:
    """A thin grey frame on all sides: of pictures, whose white would not end otherwise."""
    for spine in axis.spines.values():
        spine.set(visible=True, color="0.6", linewidth=0.5)


def logarithmic_ticks(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 times the powers of ten, in place of the powers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def wrapped(text: str, width: float) -> str:
    """The text in lines that are `width` inches wide at most, set at 7 points."""
    return textwrap.fill(text, max(8, int(width / 0.056)), break_on_hyphens=False)


def counted(numbers: Iterable[int]) -> str:
    """How many there are of something, where that differs: "20", or "20 to 60"."""
    distinct = sorted(set(numbers))
    return str(distinct[0]) if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


WIDE = ("short",)  # drawn first and wide: SF-Attn's line may lie on it

MARKS = {
    UNTRAINED: ("0.6", ":", "x"),
    BASE: ("0.6", "-", "*"),
    "full": ("black", "-", "o"),
    "short": ("0.45", "--", "s"),
    "s2": ("0.45", "-.", "^"),
    "s2_wrapped": ("0.45", ":", "v"),
    "sf": ("black", "--", "D"),
    "sf_shifted": ("black", "-.", "P"),
    "sf_then_full": ("black", ":", "X"),
}


def line_width(method: str) -> float:
    """Points; lines that others may lie on are wide, so that both are seen."""
    return 3 if method in WIDE else 1.2
