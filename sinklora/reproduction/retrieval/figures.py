"""Figures of retrieval: pass keys by length, and by length and depth (Fig. 5)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinklora.records.tables import part
from sinklora.reproduction.names import label
from sinklora.reproduction.report.style import MARKS, counted, figure_style, framed, panels, wrapped
from sinklora.reproduction.retrieval.bounded_caches import REPLAY
from sinklora.reproduction.retrieval.cache_tables import EXACT, NATS
from sinklora.reproduction.retrieval.tables import accuracies

CACHE_MARKS = {
    "full": ("0.6", "-", "*"),
    "H2O": ("black", "-", "o"),
    "StreamingLLM": ("0.45", ":", "^"),
    "Local": ("0.45", "--", "s"),
    REPLAY: ("black", "-.", "D"),
}

LENGTH = "length of the document (tokens)"

CONTEXT_ENDS = "where the extensions' context ends"

WIDTH = 0.84  # of the place of one length, that the marks at it take


@dataclass(frozen=True)
class KeysPanel:
    """One panel of Fig. 5: the trials (`rows` of `measure`), and the context of the extensions in it."""

    title: str
    rows: pd.DataFrame
    context: int


def retrieval_figure(shown: Sequence[KeysPanel], models: Sequence[str]) -> Figure:
    """Share of exact answers by length, a panel below the other, the models side by side at each length;
    bars: 95 % intervals; dotted: where each panel's context ends.
    """
    lengths = sorted({tokens for panel in shown for tokens in panel.rows.tokens})
    with figure_style():
        figure, axes = panels(len(shown), 1.55, columns=1, sharex=True)
        trials: set[int] = set()
        for axis, panel in zip(axes, shown, strict=True):
            shares = accuracies(panel.rows).rename(columns={"accuracy": "value"})
            by_model = {model: shares[shares.model == model] for model in models}
            _side_by_side(axis, lengths, {model: (MARKS.get(model), by_model[model]) for model in models})
            last = sum(tokens <= panel.context for tokens in lengths)
            axis.axvline(last - 0.5, color="black", linestyle=":", label=CONTEXT_ENDS)
            axis.set_title(panel.title, loc="left")
            axis.set(ylabel="exact (share)", ylim=(-0.04, 1.04), yticks=(0, 0.5, 1))
            trials |= set(shares.trials)
        axes[-1].set_xlabel(f"{LENGTH}\nn = {counted(trials)} a mark; bars: 95 % intervals")
        handles, names = axes[0].get_legend_handles_labels()
        order = sorted(range(len(names)), key=lambda place: names[place] not in models)
        words = [label(names[place]) for place in order]
        figure.legend(
            [handles[place] for place in order],
            words,
            loc="outside upper center",
            frameon=False,
            labelspacing=0.25,
        )
    return figure


Look = tuple[str, str, str] | None


def _side_by_side(axis: Axes, lengths: Sequence[int], lines: Mapping[str, tuple[Look, pd.DataFrame]]) -> None:
    """Value, low and high of every line at its length, each in a place of its own, without overlap."""
    step = WIDTH / max(1, len(lines))
    for number, (name, (look, points)) in enumerate(lines.items()):
        grey, _, mark = look or ("0.6", "-", "x")
        at = points.sort_values("tokens")
        places = [lengths.index(tokens) + step * (number - (len(lines) - 1) / 2) for tokens in at.tokens]
        error = [(at.value - at.low).clip(lower=0), (at.high - at.value).clip(lower=0)]
        axis.errorbar(
            places, at.value, yerr=error, color=grey, fmt=mark, markersize=3, elinewidth=0.6, label=name
        )
    for place in range(0, len(lengths), 2):
        axis.axvspan(place - 0.5, place + 0.5, color="0.95", zorder=0, linewidth=0)
    axis.set_xlim(-0.5, len(lengths) - 0.5)
    axis.set_xticks(range(len(lengths)), [str(tokens) for tokens in lengths])


def depth_figure(rows: pd.DataFrame, models: Sequence[str]) -> Figure:
    """Share of exact answers by length and depth, one panel a model: white none, black all."""
    with figure_style():
        figure, axes = panels(len(models), 2.3, sharey=True)
        for axis, model in zip(axes, models, strict=True):
            answers = rows[rows.model == model].assign(correct=rows.correct.astype(float))
            grid = answers.pivot_table(index="depth", columns="tokens", values="correct")
            image = axis.imshow(grid, cmap="Greys", vmin=0, vmax=1, aspect="auto", origin="upper")
            axis.set_xticks(range(len(grid.columns)), [str(c) for c in grid.columns], rotation=90)
            axis.set_yticks([0, len(grid.index) - 1], ["first", "last"])
            cells: Iterable[int] = answers.groupby(["depth", "tokens"]).size()
            axis.set_title(f"{wrapped(label(model), 1.05)}\n(n = {counted(cells)} a cell)", fontsize=7)
            axis.set_xlabel("tokens")
            framed(axis)
        axes[0].set_ylabel("depth of the key")
        figure.colorbar(image, ax=axes, label="exact answers (share)")
    return figure


def keys_by_cache_figure(table: pd.DataFrame, chance: float) -> Figure:
    """Exact pass keys, and nats of their digits, by length, the caches side by side; bars: 95 % intervals;
    dotted: digits that are all equally likely (`chance`, nats).

    `table`: the frame of `keys_table`.
    """
    lengths, names = sorted(table.tokens.unique()), list(dict.fromkeys(table.cache))
    with figure_style():
        figure, axes = panels(2, 1.6, columns=1, sharex=True)
        for axis, heading in zip(axes, (EXACT, NATS), strict=True):
            ends = {part(heading, end): end for end in ("low", "high")}
            points = table[["tokens", "cache", heading, *ends]].rename(columns={heading: "value", **ends})
            _side_by_side(
                axis, lengths, {name: (CACHE_MARKS[name], points[points.cache == name]) for name in names}
            )
        axes[0].set(ylabel="exact (share)", ylim=(-0.04, 1.04))
        axes[1].axhline(chance, color="0.6", linestyle=":", linewidth=0.8)
        axes[1].set(ylabel="nats of the five digits", ylim=(0, None))
        axes[1].annotate(
            "chance", (1.01, chance), xycoords=("axes fraction", "data"), va="center", fontsize=7
        )
        axes[1].set_xlabel(f"{LENGTH}\nn = {counted(table.n)} a mark; bars: 95 % intervals")
        handles, labels = axes[0].get_legend_handles_labels()
        words = ["full cache" if name == "full" else name for name in labels]
        figure.legend(handles, words, loc="outside upper center", ncols=2, frameon=False)
    return figure
