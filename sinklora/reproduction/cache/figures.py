"""Pictures of a bounded cache: accuracy against budget, and the text itself with the tokens that are kept."""

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklora.cache.policies import CachePolicy
from sinklora.hf.budget_cache import BudgetCache
from sinklora.records.tables import part
from sinklora.reproduction.cache.estimates import smaller_is_better
from sinklora.reproduction.cache.kept_tokens import kept_mask
from sinklora.reproduction.cache.study import CHANCE, PERPLEXITY, QUESTIONS
from sinklora.reproduction.cache.tables import measures, summary
from sinklora.reproduction.report.explorer import explore
from sinklora.reproduction.report.style import PAGE_WIDTH, figure_style

MARKS = {
    "full": ("black", ":", ""),
    "h2o": ("black", "-", "o"),
    "local": ("0.45", "--", "s"),
    "streaming": ("0.45", ":", "^"),
    "novelty": ("black", "-.", "D"),
}

DODGE = 1.04  # of budgets, from policy to policy

WORDS = {
    "full": "full cache",
    "h2o": "H2O",
    "local": "Local",
    "streaming": "StreamingLLM",
    "novelty": "Novelty",
}

OTHER_MARKS = [("0.65", line, mark) for line in ("-", "--", "-.") for mark in "vPX<>*"]  # of policies without

COUNTED = {PERPLEXITY: "documents", QUESTIONS: "questions"}


def budget_figure(rows: pd.DataFrame) -> Figure:
    """Each measure against the budget, one line a policy, bars: 95 % intervals; dotted: the full cache, and
    for questions chance.
    """
    found, shown = summary(rows), measures(rows)
    with figure_style():
        figure, grid = plt.subplots(
            (len(shown) + 1) // 2, 2, figsize=(PAGE_WIDTH, 2.5 * ((len(shown) + 1) // 2)), squeeze=False
        )
        axes = grid.flatten()
        for axis, measure in zip(axes, shown, strict=False):
            mine = found[found.measure == measure]
            for policy, mark in marks(found.policy).items():
                if policy in set(mine.policy):
                    _line(axis, mine[mine.policy == policy].sort_values("budget"), policy, mark)
            axis.set_xlabel("budget (% of the prompt)")
            n = int(mine.n.iloc[0])
            axis.set_title(f"{measure} (n = {n} {COUNTED.get(measure, 'trials')})")
            axis.set_ylabel("right answers (share)")
        for axis in axes[len(shown) :]:
            axis.remove()
        for axis, measure in zip(axes, shown, strict=False):
            if measure == PERPLEXITY:
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter("{x:g}")
                axis.set_ylabel("perplexity (log scale)")
            if measure == QUESTIONS:
                axis.axhline(CHANCE[QUESTIONS], color="0.7", linestyle=":", linewidth=0.8)
        axes[0].legend(frameon=False)
    return figure


def estimates_figure(found: pd.DataFrame) -> Figure:
    """The measures of `estimates` against the budget, one line a policy, bars: 95 % intervals; dotted: the
    full cache, and in grey chance.
    """
    shown = list(dict.fromkeys(found.measure))
    lines = found.rename(columns={part("value", "low"): "low", part("value", "high"): "high"})
    with figure_style():
        rows = (len(shown) + 1) // 2
        figure, grid = plt.subplots(rows, 2, figsize=(PAGE_WIDTH, 2.5 * rows), squeeze=False)
        axes = grid.flatten()
        for axis, measure in zip(axes, shown, strict=False):
            mine = lines[lines.measure == measure]
            for place, (policy, mark) in enumerate(marks(mine.policy).items()):
                beside = DODGE ** (place - 2)  # so that bars at one budget do not cover each other
                _line(axis, mine[mine.policy == policy].sort_values("budget"), policy, mark, beside)
            _budget_axis(axis, lines.budget)
            if measure != PERPLEXITY:
                axis.axhline(mine.chance.iloc[0], color="0.7", linestyle=":", linewidth=0.8)
            axis.set_xlabel("budget (% of the prompt)")
            count, groups = mine["items"].iloc[0], mine.clusters.iloc[0]
            axis.set_title(f"{measure}\n(n = {count} in {groups} {COUNTED.get(measure, 'passages')})")
            nats = smaller_is_better(measure) and measure != PERPLEXITY
            axis.set_ylabel("nats" if nats else "right answers (share)")
            if measure == PERPLEXITY:
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter(NullFormatter())
                axis.set_ylabel("perplexity (log scale)")
        for axis in axes[len(shown) :]:
            axis.remove()
        axes[0].legend(frameon=False)
    return figure


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
        label = WORDS[policy]
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
        label=WORDS.get(policy, policy),
    )


@torch.inference_mode()
def kept_share(model: PreTrainedModel, ids: Sequence[int], policy: CachePolicy) -> np.ndarray:
    """Share of key/value heads that keep each token of a prompt, by layer: [layers, tokens]."""
    cache = BudgetCache(model, policy)
    model(torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True)
    return kept_mask(cache, len(ids)).mean(1)


def kept_text_figure(
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    shares: dict[str, np.ndarray],
    columns: int = 100,
) -> Figure:
    """The text, one panel a policy; the darker a token's ground, the more heads (of all layers) keep it."""
    with figure_style():
        pieces = _layout([str(tokenizer.decode([i])) for i in ids], columns)
        height = 0.115 * (1 + max(line for line, _, _, _ in pieces)) + 0.3
        figure, axes = plt.subplots(len(shares), 1, figsize=(PAGE_WIDTH, height * len(shares)), squeeze=False)
        for axis, (name, share) in zip(axes[:, 0], shares.items(), strict=True):
            _draw_text(axis, pieces, share.mean(0), columns)
            axis.set_title(name, loc="left")
    return figure


def _layout(tokens: list[str], columns: int) -> list[tuple[int, int, str, int]]:
    """Line, column, visible text and token of each piece; a line break ends the line that it is in."""
    placed, line, column = [], 0, 0
    for token, text in enumerate(tokens):
        for piece in text.replace("\t", "    ").splitlines(keepends=True):
            shown = piece.replace("\n", "↵")
            if column + len(shown) > columns:
                line, column = line + 1, 0
            placed.append((line, column, shown, token))
            column += len(shown)
            if piece.endswith("\n"):
                line, column = line + 1, 0
    return placed


def _draw_text(axis: Axes, pieces: list[tuple[int, int, str, int]], share: np.ndarray, columns: int) -> None:
    axis.set_xlim(0, columns)
    axis.set_ylim(max(line for line, _, _, _ in pieces) + 1, 0)
    axis.axis("off")
    for line, column, shown, token in pieces:
        grey = str(1 - 0.75 * share[token])
        axis.add_patch(plt.Rectangle((column, line), len(shown), 1, color=grey, linewidth=0))
        colour = "white" if share[token] > 0.6 else "black"
        place: dict[str, Any] = {
            "ha": "center",
            "va": "center",
            "color": colour,
            "size": 5,
            "family": "monospace",
        }
        for offset, character in enumerate(shown):
            axis.text(column + offset + 0.5, line + 0.55, character, **place)


def kept_text_html(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], share: np.ndarray) -> Any:
    """The text of one layer as HTML for a notebook, kept tokens on a darker ground."""
    from html import escape

    from IPython.display import HTML

    spans = []
    for token, kept in zip(ids, share, strict=True):
        grey, colour = int(255 * (1 - 0.75 * kept)), "white" if kept > 0.6 else "black"
        text = escape(str(tokenizer.decode([token]))).replace("\n", "↵<br>")
        spans.append(f'<span style="background: rgb({grey},{grey},{grey}); color: {colour}">{text}</span>')
    return HTML(f'<pre style="line-height: 1.4">{"".join(spans)}</pre>')


def kept_explorer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[int],
    policies: dict[str, CachePolicy],
) -> object:
    """Choose policy and layer and read what is kept (a widget; needs a running notebook)."""
    import ipywidgets

    shares = {name: kept_share(model, ids, policy) for name, policy in policies.items()}

    def show(policy: str, layer: int) -> str:
        return str(kept_text_html(tokenizer, ids, shares[policy][layer]).data)

    last = len(next(iter(shares.values()))) - 1
    return explore(
        show,
        {
            "policy": ipywidgets.Dropdown(options=list(policies), description="policy"),
            "layer": ipywidgets.IntSlider(last // 2, 0, last, description="layer"),
        },
    )
