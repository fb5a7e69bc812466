"""The training curve of a base model."""

import pandas as pd
from matplotlib.figure import Figure

from sinklora.reproduction.report.style import figure_style, panels


def training_curve(curve: pd.DataFrame, title: str, smooth: int = 50) -> Figure:
    """Training loss (nats a token) against steps: each step in light grey, a running mean over `smooth`
    steps in black.
    """
    with figure_style():
        figure, [axis] = panels(1, 2.2)
        axis.plot(curve.step, curve.loss, color="0.75", linewidth=0.5, label="each step")
        mean = curve.loss.rolling(smooth, min_periods=1).mean()
        axis.plot(curve.step, mean, color="black", label=f"mean of {smooth} steps")
        axis.set(xlabel="step", ylabel="training loss (nats a token)", ylim=(0, None))
        axis.set_title(f"{title}, one run of {len(curve)} steps")
        axis.legend(frameon=False)
    return figure
