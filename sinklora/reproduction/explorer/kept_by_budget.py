"""What a cache keeps of a reader's own text, as its budget moves: in words, in a picture, under a slider."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sinklora.cache.policies import CachePolicy, make_policy
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.device import input_device
from sinklora.hf.kept_tokens import kept_mask
from sinklora.hf.rope import forget_longest_input
from sinklora.reproduction.cache.figures import kept_text_figure
from sinklora.reproduction.explorer.own_text import OwnText
from sinklora.reproduction.names import CACHES
from sinklora.reproduction.report.explorer import explore

DARK = 117  # greys below it are farther from white than from black (contrast as WCAG 2 defines it)

ALL_LAYERS = -1  # the slider's place for all of them together


@dataclass(frozen=True)
class KeptText:
    """What a policy keeps of a text: `mask` [layers, Hkv, N].

    `received` [layers, Hkv, N]: the attention that each token has received, which is its score in H2O.
    """

    policy: CachePolicy
    mask: NDArray[np.bool_]
    received: NDArray[np.float32]

    @property
    def attention_share(self) -> float:
        """Share of the text's attention that the kept tokens received, mean over layers and heads."""
        return float(((self.received * self.mask).sum(-1) / self.received.sum(-1)).mean())


@torch.inference_mode()
def kept_text(own: OwnText, policy: CachePolicy) -> KeptText:
    """Read a text into a cache and see what is left: real eviction, head by head."""
    bounded = BudgetCache(own.model, policy)
    forget_longest_input(own.model)
    own.model(
        torch.tensor([own.tokens.ids], device=input_device(own.model)),
        past_key_values=bounded,
        use_cache=True,
        logits_to_keep=1,
    )
    mask = kept_mask(bounded, len(own.tokens))
    return KeptText(policy, mask, own.received(mask.shape[1]).numpy())


def kept_in_words(own: OwnText, names: Sequence[str], budget: float) -> str:
    """How much of the attention on a text went to the tokens that policies keep, in a sentence."""
    shares = {name: kept_text(own, make_policy(name, budget)).attention_share for name in names}
    told = ", ".join(f"{_word(name)} {share:.0%}" for name, share in shares.items())
    return (
        f"The {budget:.0%} of these {len(own.tokens)} tokens that a cache of {own.title} keeps had received "
        f"this much of all attention: {told}."
    )


def _word(name: str) -> str:
    return CACHES.get(name, name)


def kept_figure(own: OwnText, names: Sequence[str], budget: float) -> Figure:
    """The text once for each policy, the darker a token's ground the more heads of all layers keep it."""
    kept = {f"{_word(name)}, {budget:.0%}": kept_text(own, make_policy(name, budget)) for name in names}
    shares = {name: one.mask.mean(1) for name, one in kept.items()}
    return kept_text_figure(own.tokenizer, own.tokens.ids, shares)


def kept_html(own: OwnText, kept: KeptText, layer: int = ALL_LAYERS) -> str:
    """The text as HTML, kept tokens on a darker ground; who points at a token reads its numbers."""
    layers = slice(None) if layer == ALL_LAYERS else slice(layer, layer + 1)
    mask, received = kept.mask[layers], kept.received[layers]
    heads = mask.shape[0] * mask.shape[1]
    shares, counts, scores = mask.mean((0, 1)), mask.sum((0, 1)), received.mean((0, 1))
    spans = []
    for token, piece in enumerate(own.tokens.pieces):
        share = float(shares[token])
        grey = round(255 * (1 - 0.75 * share))
        colour = "white" if grey < DARK else "black"
        title = (
            f"token {token}: kept by {counts[token]} of {heads} heads, attention received {scores[token]:.2f}"
        )
        shown = escape(piece).replace("\n", "↵<br>")
        style = f"background: rgb({grey},{grey},{grey}); color: {colour}"
        spans.append(f'<span title="{title}" style="{style}">{shown}</span>')
    where = "all layers" if layer == ALL_LAYERS else f"layer {layer}"
    told = f"{kept.policy.described_split(len(own.tokens))} tokens, {where}"
    return (
        f"<div>{told}; {kept.attention_share:.0%} of the attention, all layers</div>"
        f'<pre style="white-space: pre-wrap; line-height: 1.5">{"".join(spans)}</pre>'
    )


def budget_explorer(own: OwnText, names: Sequence[str], budget: float) -> object:
    """Choose policy, budget and layer and read what is kept (a widget; needs a running notebook)."""
    import ipywidgets

    @cache
    def kept(policy: str, percent: int) -> KeptText:
        return kept_text(own, make_policy(policy, percent / 100))

    def show(policy: str, percent: int, layer: int) -> str:
        return kept_html(own, kept(policy, percent), layer)

    late = {"continuous_update": False}  # the text is read again when the slider rests
    return explore(
        show,
        {
            "policy": ipywidgets.Dropdown(options=list(names), description="policy"),
            "percent": ipywidgets.IntSlider(round(100 * budget), 2, 100, description="budget (%)", **late),
            "layer": ipywidgets.IntSlider(
                ALL_LAYERS, ALL_LAYERS, own.layers - 1, description="layer (-1: all)", **late
            ),
        },
    )
