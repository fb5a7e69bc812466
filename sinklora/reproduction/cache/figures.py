"""Pictures of a bounded cache: accuracy against budget, and the text itself with the tokens that are kept."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklora.cache.policies import CachePolicy
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import input_device
from sinklora.hf.kept_tokens import kept_mask
from sinklora.hf.rope import forget_longest_input
from sinklora.records.tables import part
from sinklora.reproduction.cache.cell_estimates import smaller_is_better
from sinklora.reproduction.cache.study import PERPLEXITY, QUESTIONS
from sinklora.reproduction.cache.tables import measures, summary
from sinklora.reproduction.names import CACHES
from sinklora.reproduction.report.style import figure_style, logarithmic_ticks, panels

MARKS = {
    "full": ("black", ":", ""),
    "h2o": ("black", "-", "o"),
    "local": ("0.45", "--", "s"),
    "streaming": ("0.45", ":", "^"),
    "novelty": ("black", "-.", "D"),
    "replay": ("black", "--", "v"),
}

DODGE = 1.06  # of budgets, from policy to policy; less where there are many

ASIDE = 1.25  # of a budget, at most

# Of text: black letters can be read on most of them.
GROUNDS = LinearSegmentedColormap.from_list("grounds", ["1", "0.25"])

OTHER_MARKS = [("0.65", line, mark) for line in ("-", "--", "-.") for mark in "vPX<>*"]  # of policies without

COUNTED = {PERPLEXITY: "documents", QUESTIONS: "questions"}


def budget_figure(rows: pd.DataFrame) -> Figure:
    """The measures of `summary` against the budget, see `estimates_figure`."""
    lines = summary(rows)
    titles = {
        measure: f"{measure} (n = {int(of_measure.n.iloc[0])} {COUNTED.get(str(measure), 'trials')})"
        for measure, of_measure in lines.groupby("measure", sort=False)
    }
    return _measures_figure(lines, {measure: titles[measure] for measure in measures(rows)})


def estimates_figure(found: pd.DataFrame) -> Figure:
    """The measures of `estimates` against the budget, one line a policy, side by side at each budget, bars:
    95 % intervals; dotted: the full cache, and in grey chance.
    """
    lines = found.rename(columns={part("value", "low"): "low", part("value", "high"): "high"})
    titles = {}
    for measure, of_measure in lines.groupby("measure", sort=False):
        items, clusters = of_measure["items"].iloc[0], of_measure.clusters.iloc[0]
        grouped = f"{items} in {clusters}" if items > clusters else str(items)
        titles[str(measure)] = f"{measure}\n(n = {grouped} {COUNTED.get(str(measure), 'documents')})"
    return _measures_figure(lines, titles)


def _measures_figure(lines: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """A panel a measure, from lines of measure, policy, budget, value, low, high and chance."""
    with figure_style():
        figure, axes = panels(len(titles), 2.4, columns=2)
        for axis, (measure, title) in zip(axes, titles.items(), strict=True):
            points = lines[lines.measure == measure]
            bounded = [policy for policy in marks(points.policy) if policy != "full"]
            for policy, mark in marks(points.policy).items():
                # side by side, so that bars at one budget do not cover each other
                beside = _beside(bounded.index(policy), len(bounded)) if policy in bounded else 1.0
                _line(axis, points[points.policy == policy].sort_values("budget"), policy, mark, beside)
            _budget_axis(axis, lines.budget)
            _value_axis(axis, measure, points.chance.iloc[0])
            axis.set(title=title, xlabel="budget (% of the prompt)")
        handles, labels = axes[0].get_legend_handles_labels()
        columns = 5 if len(labels) <= 10 else 3  # of many some have long names
        above: dict[str, Any] = {"loc": "outside upper center", "ncols": columns, "frameon": False}
        figure.legend(handles, labels, title="bars: 95 % intervals", title_fontsize=7, **above)
    return figure


def _beside(place: int, count: int) -> float:
    """By what to multiply a budget for one of so many policies."""
    middle = (count - 1) / 2
    step = min(DODGE, ASIDE ** (1 / middle)) if middle else 1.0
    return float(step ** (place - middle))


def _value_axis(axis: Axes, measure: str, chance: float) -> None:
    """The whole range of shares, nats from 0 on, perplexity on a logarithmic scale; and what chance gives."""
    if measure == PERPLEXITY:
        axis.set_yscale("log")
        logarithmic_ticks(axis.yaxis)
        axis.set_ylabel("perplexity (log scale)")
        return
    axis.axhline(chance, color="0.7", linestyle=":", linewidth=0.8)
    axis.annotate("chance", (1.01, chance), xycoords=("axes fraction", "data"), va="center", fontsize=7)
    if smaller_is_better(measure):
        axis.set(ylabel="nats", ylim=(0, None))
    else:
        axis.set(ylabel="right answers (share)", ylim=(-0.03, 1.03))


def marks(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Grey, line and mark of each policy: first those of MARKS, then others in their order."""
    named = list(dict.fromkeys(names))
    others = [name for name in named if name not in MARKS]
    return {name: MARKS[name] for name in MARKS if name in named} | dict(
        zip(others, cycle(OTHER_MARKS), strict=False)
    )


def _budget_axis(axis: Axes, budgets: "pd.Series[float]") -> None:
    """A logarithmic axis with the measured budgets, the same in all panels."""
    shown = sorted(100 * budget for budget in budgets.unique() if budget < 1)
    axis.set_xscale("log")
    if shown:
        axis.set_xlim(shown[0] / 1.3, shown[-1] * 1.3)
    axis.set_xticks(shown, [f"{budget:g}" for budget in shown])
    axis.minorticks_off()


def _line(
    axis: Axes, points: pd.DataFrame, policy: str, style: tuple[str, str, str], beside: float = 1
) -> None:
    grey, line, mark = style
    if policy == "full":
        label = CACHES[policy]
        axis.axhline(points.value.iloc[0], color=grey, linestyle=line, linewidth=0.8, label=label)
        return
    error = np.abs(np.array([points.value - points.low, points.high - points.value]))
    axis.errorbar(
        100 * points.budget * beside,
        points.value,
        yerr=error,
        color=grey,
        linestyle=line,
        marker=mark,
        markersize=3,
        elinewidth=0.6,
        capsize=1.5,
        label=CACHES.get(policy, policy),
    )


@torch.inference_mode()
def kept_share(model: PreTrainedModel, ids: Sequence[int], policy: CachePolicy) -> np.ndarray:
    """Share of key/value heads that keep each token of a prompt, by layer: [layers, tokens]."""
    cache = BudgetCache(model, policy)
    forget_longest_input(model)
    model(torch.tensor([list(ids)], device=input_device(model)), past_key_values=cache, use_cache=True)
    return kept_mask(cache, len(ids)).mean(1)


def kept_text_figure(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    shares: dict[str, np.ndarray],
    columns: int = 54,
) -> Figure:
    """The running text, one panel a policy; the darker a token's ground, the more heads (of all layers) keep
    it. Line breaks are written as ↵.
    """
    tokens = [str(tokenizer.decode([i])).replace("\t", "    ").replace("\n", "↵") for i in ids]
    letters = "".join(tokens)
    lines = -(-len(letters) // columns)
    with figure_style():
        figure, axes = panels(len(shares), 0.4 + 0.13 * lines, columns=2)
        for axis, (name, share) in zip(axes, shares.items(), strict=True):
            by_letter = np.zeros(lines * columns)
            by_letter[: len(letters)] = np.repeat(share.mean(0), [len(token) for token in tokens])
            image = _draw_text(axis, letters, by_letter.reshape(lines, columns))
            axis.set_title(name, loc="left")
        label = "share of all heads that keep the token"
        figure.colorbar(image, ax=axes, location="bottom", label=label, aspect=80, pad=0.02)
    return figure


def _draw_text(axis: Axes, letters: str, grounds: np.ndarray) -> AxesImage:
    """Letters in a grid [lines, columns] on grounds from white (0) to dark grey (1)."""
    image = axis.imshow(grounds, cmap=GROUNDS, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    place: dict[str, Any] = {"ha": "center", "va": "center", "size": 7, "family": "monospace"}
    for number, letter in enumerate(letters):
        line, column = divmod(number, grounds.shape[1])
        axis.text(column, line, letter, color="white" if grounds[line, column] > 0.6 else "black", **place)
    axis.axis("off")
    return image
