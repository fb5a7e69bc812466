"""How figures look: sizes, fonts, and the line and mark of every method."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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


def panels(count: int, height: float = 2.2, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels side by side: one column wide, or both columns for two and more."""
    width = COLUMN_WIDTH if count == 1 else PAGE_WIDTH
    figure, axes = plt.subplots(1, count, figsize=(width, height), squeeze=False, **options)
    return figure, list(axes[0])


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
