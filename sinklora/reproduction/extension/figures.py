"""Figures of context extension: nats above full attention, perplexity by context, what was chosen."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from sinklora.reproduction.extension.comparison import Losses, losses
from sinklora.reproduction.extension.perplexity_axes import cover_as_many_nats, name_ends, on_log_scales
from sinklora.reproduction.extension.selection import RATES, mean_losses, untrained_losses
from sinklora.reproduction.extension.tables import untrained_methods
from sinklora.reproduction.names import BASE, label, positions_title
from sinklora.reproduction.report.style import MARKS, figure_style, line_width, panels
from sinklora.reproduction.report.summaries import mean_over

OFF_SCALE = 2.0  # times the others' value: a mark or line up there would hide how they differ


def gap_figure(rows: pd.DataFrame, methods: Sequence[str], target: int, start: str) -> Figure:
    """Nats above full attention at the target: mean, 95 % interval, of several seeds each a dot; a panel a
    test set.

    In the first lines what needs no training: the best on validation (`start`), the base in its own windows,
    and all other ways not to train; of those that are far off the others' scale the number.
    """
    trained = [name for name in methods if name != "full"]
    names = [*dict.fromkeys([start, BASE, *untrained_methods(rows)]), *trained]
    sets = sorted(rows.test_set.unique())
    with figure_style():
        figure, axes = panels(len(sets), 0.6 + 0.21 * len(names), sharey=True, sharex=True)
        measured = {test_set: losses(rows, test_set, target) for test_set in sets}
        leads = {
            (key, name): test_losses.lead("full", name)
            for key, test_losses in measured.items()
            for name in names
        }
        most = OFF_SCALE * max(leads[key, name].estimate for key in sets for name in (start, BASE, *trained))
        for axis, (test_set, test_losses) in zip(axes, measured.items(), strict=True):
            for place, name in enumerate(names):
                lead = leads[test_set, name]
                if lead.estimate > most:
                    text, at = f"{lead.estimate:+.2f}, off the scale", axis.get_yaxis_transform()
                    axis.text(1, place, text, transform=at, ha="right", va="center", fontsize=6.5)
                    continue
                error = [[lead.estimate - lead.low], [lead.high - lead.estimate]]
                axis.errorbar(lead.estimate, place, xerr=error, fmt="ks", markersize=3, elinewidth=1)
                seeds = (test_losses.by_method[name] - test_losses.by_method["full"]).mean(1)
                if len(seeds) > 1:
                    axis.plot(seeds, [place + 0.25] * len(seeds), "o", color="0.6", markersize=2)
            axis.set_yticks(range(len(names)), [label(name) for name in names])
            axis.axvline(0, color="black", linewidth=0.6)
            axis.set_title(f"{test_set}, {target} tokens\n{lead.units}", fontsize=7)
            axis.set_xlabel("nats a token above full attention")
        axes[0].invert_yaxis()
    return figure


def context_figure(rows: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Perplexity against context, a line a method (mean over seeds), named at its end; a panel a test set.

    Shades: 95 % intervals of a method's lead on full attention, by documents and seeds; documents differ far
    more from each other, which moves all lines alike. A height is the same number of nats in all panels. What
    ends at more than `OFF_SCALE` times the best is named with its value in place of a line.
    """
    sets = sorted(rows.test_set.unique())
    contexts = sorted(map(int, rows.context.unique()))
    with figure_style():
        figure, axes = panels(len(sets), 2.6)
        named = []
        for axis, test_set in zip(axes, sets, strict=True):
            lines = _perplexities(rows, test_set, methods, contexts)
            ends = {method: (max(line), line[max(line)][0]) for method, line in lines.items()}
            most = OFF_SCALE * min(value for _, value in ends.values())
            named.append({method: end for method, end in ends.items() if end[1] <= most})
            for method in named[-1]:
                _draw_line(axis, lines[method], method)
            on_log_scales(axis, contexts)
            beyond = [f"{label(m)} ({end[1]:.0f})" for m, end in ends.items() if m not in named[-1]]
            note = f"\nabove: {', '.join(beyond)}" if beyond else ""
            axis.set_xlabel("context at test time (tokens)")
            pieces = rows[rows.test_set == test_set].piece.nunique()
            seeds = rows.seed.nunique()
            units = f"{seeds} seed{'s' if seeds > 1 else ''} × {pieces} pieces"
            axis.set_title(f"{test_set}: {units}{note}", fontsize=7)
        cover_as_many_nats(axes)
        for axis, ends in zip(axes, named, strict=True):
            name_ends(axis, ends, contexts[-1])
        axes[0].set_ylabel("perplexity")
    return figure


Point = tuple[float, float, float]  # a mean with the ends of its shade


def _perplexities(
    rows: pd.DataFrame, test_set: str, methods: Sequence[str], contexts: Sequence[int]
) -> dict[str, dict[int, Point]]:
    """Method -> context -> perplexity and shade, of what was measured; the base in windows of its own has the
    same at every context.
    """
    of_set = rows[rows.test_set == test_set]
    points: dict[str, dict[int, Point]] = {}
    for context in contexts:
        if not (of_set.context == context).any():
            continue
        here = losses(of_set, test_set, context)
        for method in (name for name in methods if name in here.by_method):
            points.setdefault(method, {})[context] = _with_shade(here, method)
    return {method: points[method] for method in methods if method in points}


def _with_shade(measured: Losses, method: str) -> Point:
    mean = float(measured.perplexities(method).mean())
    if method == "full" or "full" not in measured.by_method:
        return mean, mean, mean
    lead = measured.lead("full", method)
    low, high = (math.exp(end - lead.estimate) for end in (lead.low, lead.high))
    return mean, mean * low, mean * high


def _draw_line(axis: Axes, values: Mapping[int, Point], method: str) -> None:
    grey, line, mark = MARKS.get(method, ("0.5", "-", "."))
    means, low, high = zip(*values.values(), strict=True)
    axis.plot(list(values), means, color=grey, linestyle=line, marker=mark, markersize=3.5)
    axis.fill_between(list(values), low, high, color=grey, alpha=0.15, linewidth=0)


def rates_figure(rows: pd.DataFrame) -> Figure:
    """Validation perplexity against the learning rate, a line a pattern; dotted: all that needs no training.

    What is more than `OFF_SCALE` times the best is named with its value in place of a line, and so are rates
    at which the training diverged.
    """
    untrained, tried = untrained_losses(rows), mean_losses(rows)
    diverged = np.isinf(tried.nll)
    most = min(untrained.values()) + math.log(OFF_SCALE)
    with figure_style():
        figure, [axis] = panels(1, 2.4)
        ends = {}
        for method, group in tried[~diverged].groupby("method", sort=False):
            grey, line, mark = MARKS.get(str(method), ("0.5", "-", "."))
            at, values = group["learning rate"], np.exp(group.nll)
            axis.plot(at, values, color=grey, linestyle=line, marker=mark, markersize=3.5)
            ends[str(method)] = (at.iloc[-1], float(values.iloc[-1]))
        for name, nats in untrained.items():
            if nats <= most:
                axis.axhline(math.exp(nats), color="0.6", linestyle=":")
                ends[name] = (max(rows["learning rate"].dropna()), math.exp(nats))
        beyond = [f"{label(name)} ({math.exp(nats):.0f})" for name, nats in untrained.items() if nats > most]
        of_diverged = tried.loc[diverged, RATES].itertuples(index=False, name=None)
        ended = [f"{label(method)} at {rate:g}" for method, rate in of_diverged]
        said = {"above": beyond, "diverged": ended}
        axis.set_title("\n".join(f"{k}: {', '.join(v)}" for k, v in said.items() if v), fontsize=7)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
        name_ends(axis, ends, max(rows["learning rate"].dropna()))
        axis.set_xlabel("learning rate")
        axis.set_ylabel("validation perplexity")
    return figure


def curves_figure(curves: pd.DataFrame, by_steps: pd.DataFrame, start: float) -> Figure:
    """Left: training loss by step, a line a pattern; right: validation perplexity of full attention by steps.

    `curves`: columns method, seed, step, loss; `by_steps`: steps, nll; `start`: nats of the best untrained.
    """
    with figure_style():
        figure, (left, right) = panels(2, 2.2)
        _draw_losses(left, curves)
        right.plot(by_steps.steps, np.exp(by_steps.nll), "ko-", markersize=3.5)
        right.axhline(np.exp(start), color="0.6", linestyle=":")
        right.set_xscale("log", base=2)
        right.set_xticks(list(by_steps.steps), [str(steps) for steps in by_steps.steps])
        right.set_xlabel("steps, full attention (dotted: best of no training)")
        right.set_ylabel("validation perplexity")
    return figure


def losses_figure(curves: Mapping[str, pd.DataFrame]) -> Figure:
    """Training loss by step, a line a pattern, a panel a kind of positions; columns as in `curves_figure`."""
    with figure_style():
        figure, axes = panels(len(curves), 2.2, sharey=True)
        for axis, (kind, of_kind) in zip(axes, curves.items(), strict=True):
            _draw_losses(axis, of_kind)
            axis.set_title(f"{positions_title(kind)}: {axis.get_title()}", fontsize=7)
    return figure


def _draw_losses(axis: Axes, curves: pd.DataFrame) -> None:
    for method, group in curves.groupby("method", sort=False):
        mean = group.groupby("step").loss.mean()
        grey, line, _ = MARKS.get(str(method), ("0.5", "-", "."))
        smooth = mean.rolling(max(1, len(mean) // 10), min_periods=1).mean()
        width = line_width(str(method))
        axis.plot(smooth, color=grey, linestyle=line, linewidth=width, label=label(str(method)))
    axis.set_xlabel("step")
    axis.set_ylabel("training loss (nats a token)")
    axis.set_title(f"{mean_over(list(curves.seed.unique()))}, smoothed over a tenth")
    # Below the panel: losses of one kind of data go up and down together, and leave no room in it.
    axis.legend(frameon=False, fontsize=6, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.25))


def positions_figure(rows: Mapping[str, pd.DataFrame], methods: Sequence[str], original: int) -> Figure:
    """Nats above full attention by position, a line a method, a panel a kind of positions; dotted: the base's
    context.

    Means over seeds and pieces. What needs no training is drawn too, as far as it is no more than `OFF_SCALE`
    times the best of it; what goes beyond is named with its most.
    """
    with figure_style():
        figure, axes = panels(len(rows), 2.6, sharey=True)
        for axis, (kind, of_kind) in zip(axes, rows.items(), strict=True):
            leads, most = _leads_by_position(of_kind, methods)
            marks = iter("x+1234")  # of what needs no training, in turn
            names = {BASE: "no training"}  # here it is read beyond its own context too
            for method, lead in leads.items():
                shown, named = lead[lead <= most], names.get(method) or label(method)
                if len(shown):
                    grey, line, mark = MARKS.get(method) or ("0.6", ":", next(marks, "."))
                    axis.plot(
                        shown,
                        color=grey,
                        linestyle=line,
                        marker=mark,
                        markersize=3.5,
                        label=named,
                    )
            axis.axvline(original, color="0.6", linestyle=":", linewidth=0.6)
            axis.axhline(0, color="black", linewidth=0.6)
            axis.set_xlabel("position (tokens)")
            beyond = [
                f"{names.get(m) or label(m)} (to {lead.max():+.1f})"
                for m, lead in leads.items()
                if lead.max() > most
            ]
            note = "\nhigher up: " + ",\n".join(beyond) if beyond else ""
            count = f"{of_kind.piece.nunique()} pieces of {of_kind.group.nunique()} documents"
            axis.set_title(f"{positions_title(kind)}: {count}{note}", fontsize=7)
            axis.legend(frameon=False, fontsize=6, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.25))
        axes[0].set_ylabel("nats above full attention")
    return figure


def _leads_by_position(
    rows: pd.DataFrame, methods: Sequence[str]
) -> tuple[dict[str, "pd.Series[float]"], float]:
    """Nats above full attention by method and position, the untrained ones first; and the most to draw."""
    nats = rows.groupby(["method", "position"]).nll.mean().unstack("position")
    untrained = list(rows[rows.seed.isna()].method.unique())
    trained = [method for method in methods if method in nats.index and method != "full"]
    leads = {method: nats.loc[method] - nats.loc["full"] for method in [*untrained, *trained]}
    best = min(leads[method].mean() for method in untrained)
    return leads, OFF_SCALE * max([best, *(leads[method].max() for method in trained)])


def sinks_figure(rows: Mapping[str, pd.DataFrame], methods: Sequence[str], uniform: float) -> Figure:
    """The share of attention on the first four tokens by layer, a line a method, a panel a kind of positions.

    Dotted: if attention were uniform.
    """
    with figure_style():
        figure, axes = panels(len(rows), 2.4, sharey=True)
        for axis, (kind, of_kind) in zip(axes, rows.items(), strict=True):
            for method in methods:
                by_layer = 100 * of_kind[of_kind.method == method].groupby("layer").share.mean()
                grey, line, _ = MARKS.get(method, ("0.5", "-", "."))
                axis.plot(
                    by_layer.index,
                    by_layer,
                    color=grey,
                    linestyle=line,
                    linewidth=line_width(method),
                    label=label(method),
                )
            axis.axhline(100 * uniform, color="0.6", linestyle=":")
            axis.set_xlabel("layer")
            count = f"{of_kind.piece.nunique()} pieces"
            axis.set_title(f"{positions_title(kind)}: {count}; dotted: uniform", fontsize=7)
        axes[0].set_ylabel("attention on the first 4 tokens (%)")
        axes[0].legend(frameon=False, fontsize=6)
    return figure
