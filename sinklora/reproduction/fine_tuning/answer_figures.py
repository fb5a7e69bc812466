"""The figure of answers about documents: how likely the right ones are, by model and cache (Fig. 9)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinklora.evaluate.paired_effects import Effect
from sinklora.reproduction.fine_tuning.answer_tables import MODEL, model_label
from sinklora.reproduction.fine_tuning.claims import by_file, mean_effect, nats
from sinklora.reproduction.report.style import figure_style, panels

SHADES = ("black", "0.3", "0.45", "0.6", "0.75")

MARKERS = ("o", "s", "^", "D", "x")


def answers_figure(rows: pd.DataFrame) -> Figure:
    """Left: nats a token of the right answers; right: F1 of what was written. A row for each model, a mark
    with its 95 % interval for each cache.
    """
    models = [str(name) for name in rows.model.unique()]
    caches = [str(name) for name in rows.cache.unique()]
    with figure_style():
        figure, (left, right) = panels(2, 0.9 + 0.45 * len(models))
        for number, cache in enumerate(caches):
            likely = [mean_effect(nats(rows, model, cache)) for model in models]
            written = [
                mean_effect(by_file(rows[(rows.model == model) & (rows.cache == cache)], "f1", 100))
                for model in models
            ]
            offset = 0.6 * ((number + 0.5) / len(caches) - 0.5)
            for axis, effects in ((left, likely), (right, written)):
                _marks(axis, effects, offset, cache, number)
        for axis in (left, right):
            axis.set_yticks(range(len(models)), [model_label(name) for name in models])
            axis.set_ylim(len(models) - 0.5, -0.5)
        right.set_yticklabels([])
        left.set_ylabel(MODEL)
        counted = f"{rows.question.nunique()} questions, {rows.file.nunique()} files"
        left.set_xlabel(f"nats a token of the right answers\n({counted}; bars: 95 %)")
        right.set_xlabel("F1 of what was written (%)")
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside upper center", ncols=len(caches), frameon=False
        )
    return figure


def _marks(axis: Axes, effects: list[Effect], offset: float, cache: str, number: int) -> None:
    middles = [one.estimate for one in effects]
    below = [one.estimate - one.low for one in effects]
    above = [one.high - one.estimate for one in effects]
    axis.errorbar(
        middles,
        [row + offset for row in range(len(effects))],
        xerr=[below, above],
        color=SHADES[number % len(SHADES)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=3.5,
        linestyle="none",
        linewidth=0.9,
        label=cache,
    )
