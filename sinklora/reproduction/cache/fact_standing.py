"""Why a policy keeps facts or not: where the tokens of an answer stand among all tokens, head by head."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sinklora.cache.policies import CachePolicy
from sinklora.evaluate.planted_facts import FactPassage
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import input_device
from sinklora.hf.rope import forget_longest_input
from sinklora.reproduction.report.style import figure_style, framed, panels

Shares = NDArray[np.floating]


@torch.inference_mode()
def whole_answers_among_best(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[FactPassage],
    policy: CachePolicy,
    share: float,
) -> Shares:
    """For each head, of how many facts all tokens of the answer are among the `share` of all tokens with the
    highest scores: [layers, Hkv].

    `policy` scores tokens and has the whole passage as its budget, so that nothing is evicted. Answers are
    found by their text; raises ValueError for one that is not in its passage.
    """
    hits: list[Shares] = []
    for passage in passages:
        cache = BudgetCache(model, policy)
        ids = torch.from_numpy(passage.ids)[None].to(input_device(model))
        forget_longest_input(model)
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        scores = torch.stack(
            [layer.columns()["scores"][0, :, : ids.shape[1]] for layer in cache.budget_layers]
        )
        least = scores.quantile(1 - share, dim=-1)  # [layers, Hkv]
        for fact in passage.facts:
            tokens = answer_tokens(tokenizer, passage, fact.answer)
            hits.append((scores[..., tokens].amin(-1) >= least).cpu().numpy())
    return np.mean(hits, axis=0)


def answer_tokens(tokenizer: PreTrainedTokenizerBase, passage: FactPassage, answer: str) -> list[int]:
    """Places of the tokens of a passage that hold an answer. Raises ValueError where there are none."""
    pieces = [str(tokenizer.decode([int(i)])) for i in passage.ids]
    begins = np.cumsum([0, *map(len, pieces)])
    first = "".join(pieces).find(answer)
    if first < 0:
        raise ValueError(f"answer={answer!r}: the passage does not hold it")
    last = first + len(answer)
    return [i for i in range(len(pieces)) if begins[i] < last and begins[i + 1] > first]


def standing_figure(shares: Mapping[str, Shares], of: str) -> Figure:
    """A map a policy, layers by heads: the darker, the more facts that head ranks among the best; `of` says
    among which.
    """
    with figure_style():
        figure, axes = panels(len(shares), 2.6, columns=len(shares))
        for axis, (name, by_head) in zip(axes, shares.items(), strict=True):
            image = axis.imshow(by_head, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            framed(axis)
            axis.set_title(f"{name}\nmean {by_head.mean():.0%}, best head {by_head.max():.0%}")
            axis.set(xlabel="key/value head", ylabel="layer", xticks=range(by_head.shape[1]))
        figure.colorbar(image, ax=axes, location="bottom", label=f"share of the facts {of}", aspect=40)
    return figure


def standing_in_words(shares: Mapping[str, Shares], share: float) -> str:
    """For each policy how many heads have most answers whole among the `share` of their best tokens, the
    best head, and the mean of all; and what chance would give.
    """
    said = [
        f"{name}: {int((by_head > 0.5).sum())} of {by_head.size} heads do so for more than half of the "
        f"facts, the best for {by_head.max():.0%}, the mean for {by_head.mean():.0%}"
        for name, by_head in shares.items()
    ]
    return f"{'; '.join(said)}; by chance an answer of three tokens {share**3:.1%}."
