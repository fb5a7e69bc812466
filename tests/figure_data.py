"""What the artists of a figure show: the data of lines, error bars, bars and images, as they are drawn."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.lines import Line2D


def xy(line: Line2D) -> tuple[list[float], list[float]]:
    """The points of a line."""
    return [float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()]  # type: ignore[union-attr]


def lines(axis: Axes) -> dict[str, tuple[list[float], list[float]]]:
    """The labelled lines of a panel."""
    labelled = {str(line.get_label()): line for line in axis.lines}
    return {label: xy(line) for label, line in labelled.items() if not label.startswith("_")}


def unlabelled(axis: Axes) -> list[tuple[list[float], list[float]]]:
    """The lines of a panel that no legend names, in the order in which they were drawn."""
    return [xy(line) for line in axis.lines if str(line.get_label()).startswith("_")]


def error_bars(axis: Axes) -> list[tuple[str, list[list[float]]]]:
    """Label, and x, low, value, high of each point, for every line with error bars, in drawing order."""
    found = []
    for container in axis.containers:
        if isinstance(container, ErrorbarContainer):
            data, _, bars = container
            points = zip(*xy(data), strict=True)
            ends: list[Any] = bars[0].get_segments() if bars else [[(x, y), (x, y)] for x, y in points]
            values = xy(data)[1]
            drawn = [[e[0][0], e[0][1], v, e[1][1]] for e, v in zip(ends, values, strict=True)]
            found.append((str(container.get_label()), [[float(n) for n in point] for point in drawn]))
    return found


def heights(axis: Axes) -> list[float]:
    """The heights of the bars, from left to right."""
    bars = [bar for group in axis.containers if isinstance(group, BarContainer) for bar in group.patches]
    return [float(bar.get_height()) for bar in sorted(bars, key=lambda bar: bar.get_x())]


def image(axis: Axes) -> np.ndarray:
    """The values of the one image of a panel, its first row at the top."""
    [shown] = axis.images
    values = np.asarray(shown.get_array())
    return values if shown.origin == "upper" else values[::-1]


def darkness(axis: Axes) -> np.ndarray:
    """How dark each cell of a panel's image is drawn: 0 is white, 1 black."""
    [shown] = axis.images
    drawn = 1 - np.asarray(shown.to_rgba(shown.get_array()))[..., :3].mean(-1)
    return drawn if shown.origin == "upper" else drawn[::-1]


def grey_of(colour: Any) -> float:
    """How dark a colour is: 0 is white, 1 black."""
    return 1 - float(np.mean(to_rgb(colour)))
