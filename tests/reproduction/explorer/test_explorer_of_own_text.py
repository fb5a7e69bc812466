"""What is said and drawn of a reader's own text, from the model's own weights and the cache's own tokens."""

import re

import ipywidgets
import numpy as np
import pytest
import torch

from figure_data import darkness, image
from helpers import assert_close
from moved_controls import check_controls
from sinklora.attention.patterns import FULL, S2, SF
from sinklora.cache.h2o import H2O
from sinklora.cache.sliding_window import SlidingWindow
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.hf.budget_cache import BudgetCache
from sinklora.reproduction.explorer.kept_by_budget import (
    budget_explorer,
    kept_figure,
    kept_html,
    kept_in_words,
    kept_text,
)
from sinklora.reproduction.explorer.own_text import OwnText, look_at
from sinklora.reproduction.explorer.pattern_overlays import (
    attention_explorer,
    patterns_over_attention,
    seen_in_words,
    seen_share,
    shown_patterns,
    sinks_in_words,
)
from sinklora.reproduction.patterns.figures import FAINTEST

CODE = "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2) < 3)  # <b>&amp;\n"


@pytest.fixture(scope="module")
def own() -> OwnText:
    return look_at("data/base", CODE, tokens=40)


def test_all_heads_are_looked_at_on_the_first_tokens(own: OwnText) -> None:
    count = len(own.tokens)
    assert count <= 40 and own.maps.shape == (4, 4, count, count)
    assert "".join(own.tokens.pieces) == CODE[: sum(map(len, own.tokens.pieces))]
    with torch.no_grad():
        expected = own.model(torch.tensor([own.tokens.ids]), output_attentions=False).logits
    assert expected.shape[1] == count and own.title == "embedded base"
    assert list(own.spread_maps(2, 3)) == [(0, 0), (0, 2), (0, 3), (3, 0), (3, 2), (3, 3)]


def test_the_attention_received_is_the_score_of_h2o(own: OwnText) -> None:
    cache = BudgetCache(own.model, H2O(1.0))
    with torch.no_grad():
        own.model(torch.tensor([own.tokens.ids]), past_key_values=cache, use_cache=True)
    for layer, mine in zip(cache.budget_layers, own.received(4), strict=True):
        assert layer.scorer is not None
        assert_close(mine, layer.scorer.state["scores"][0][:, : len(own.tokens)], atol=1e-4)


def test_query_heads_that_share_a_key_are_summed(own: OwnText) -> None:
    assert_close(own.received(2)[1, 1], own.maps[1, 2:].sum((0, 1)), atol=1e-5)


@pytest.mark.parametrize(
    ("base", "text", "tokens", "words"),
    [
        ("data/base", "short", 40, "text: has 3 tokens"),
        ("data/base", CODE, 513, "tokens=513: data/base was trained for 512"),
        ("data/base", CODE, 3, "tokens=3"),
        ("no/model", CODE, 40, "base='no/model'"),
    ],
)
def test_what_cannot_be_looked_at_is_named(base: str, text: str, tokens: int, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        look_at(base, text, tokens)


def test_the_share_that_stays_by_hand() -> None:
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0] = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.6, 0.1, 0.3, 0], [0.2, 0.1, 0.3, 0.4]])
    windows = SF.__class__(2)  # of two tokens, no sinks: queries 2 and 3 lose the first window
    assert_close(seen_share(maps, windows), [[(1 + 1 + 0.3 + 0.7) / 4]], atol=1e-6)
    assert_close(seen_share(maps, FULL), [[1.0]], atol=1e-6)


def test_sentences_tell_the_shares(own: OwnText) -> None:
    told = {name: f"{float(seen_share(own.maps, p).mean()):.0%}" for name, p in (("sf", SF), ("s2", S2))}
    said = seen_in_words(own, ("sf", "s2"))
    assert f"SF-Attn {told['sf']}" in said and f"S²-Attn without the leak {told['s2']}" in said
    count = len(own.tokens)
    mass = own.maps[:, :, count // 4 :, :4].sum(-1).mean()
    assert sinks_in_words(own).startswith(f"{float(mass):.0%} of the attention of embedded base falls on")


def test_masks_lie_over_the_map_of_the_head(own: OwnText) -> None:
    axes = patterns_over_attention(own, 2, 3, shown_patterns(8)).axes
    weights = own.maps[2, 3]
    masks = [FULL, *[pattern.__class__(8, *rest) for pattern, rest in ((SF, (4,)), (S2, (0, 0.5)))]]
    for axis, pattern in zip(axes, masks, strict=True):
        assert_close(image(axis), weights.numpy().clip(FAINTEST), atol=1e-9)
        most = np.unravel_index(int(weights.argmax()), weights.shape)
        assert darkness(axis)[most] == darkness(axis).max() > darkness(axis)[0, -1] == darkness(axis).min()
        visible = pattern.visible(4, len(weights))[3]
        stays = float((weights * visible).sum(-1).mean())
        pairs = int(visible.sum()) / (len(weights) * (len(weights) + 1) / 2)
        assert axis.get_title().endswith(f"\n{stays:.0%} of the attention\n{pairs:.0%} of the pairs")
    assert "100% of the attention\n100% of the pairs" in axes[0].get_title()
    assert not axes[0].collections and axes[1].collections and axes[2].collections


@pytest.mark.parametrize("policy", [H2O(0.3), SlidingWindow(0.3), StreamingLLM(8)], ids=str)
def test_kept_tokens_and_their_attention(own: OwnText, policy: H2O) -> None:
    kept = kept_text(own, policy)
    count, total = len(own.tokens), policy.split(len(own.tokens)).total
    assert kept.mask.shape == (4, 4, count) and (kept.mask.sum(-1) == total).all()
    shares = [
        float(received[mask].sum() / received.sum())
        for received, mask in zip(kept.received.reshape(-1, count), kept.mask.reshape(-1, count), strict=True)
    ]
    assert_close(kept.attention_share, float(np.mean(shares)), atol=1e-5)
    if isinstance(policy, SlidingWindow):
        assert kept.mask[..., -total:].all()


def contrast(ground: int, text: int) -> float:
    """Of two greys, as WCAG 2 defines it."""
    light = sorted(((grey / 255 + 0.055) / 1.055) ** 2.4 if grey > 10 else 0.0 for grey in (ground, text))
    return (light[1] + 0.05) / (light[0] + 0.05)


def test_who_points_at_a_token_reads_its_numbers(own: OwnText) -> None:
    kept = kept_text(own, H2O(0.3))
    shown = kept_html(own, kept, layer=1)
    titles = re.findall(r'title="token (\d+): kept by (\d) of 4 heads, attention received ([\d.]+)"', shown)
    assert [int(token) for token, _, _ in titles] == list(range(len(own.tokens)))
    assert [int(heads) for _, heads, _ in titles] == kept.mask[1].sum(0).tolist()
    assert_close([float(x) for _, _, x in titles], kept.received[1].mean(0), atol=5e-3)
    greys = [int(grey) for grey in re.findall(r"rgb\((\d+),", shown)]
    assert greys == [round(255 * (1 - 0.75 * share)) for share in kept.mask[1].mean(0)]
    for whole in (kept_html(own, kept), shown):
        grounds = re.findall(r"rgb\((\d+),\d+,\d+\); color: (\w+)", whole)
        assert len(grounds) == len(own.tokens)
        for grey, colour in grounds:
            others = {name: contrast(int(grey), text) for name, text in (("white", 255), ("black", 0))}
            assert colour == max(others, key=lambda name: others[name]), grey
    assert "kept by 0 of 16 heads" in kept_html(own, kept) and "<b>" not in shown
    assert kept_in_words(own, ["h2o"], 0.3).endswith(f"H2O {kept.attention_share:.0%}.")


def test_the_static_picture_has_a_panel_for_each_policy(own: OwnText) -> None:
    *panels, bar = kept_figure(own, ["h2o", "local"], 0.25).axes
    assert [axis.get_title(loc="left") for axis in panels] == ["H2O, 25%", "Local, 25%"]
    assert bar.get_xlabel() == "share of all heads that keep the token"


@pytest.mark.parametrize("which", ["attention", "budget"])
def test_every_slider_changes_what_is_shown(own: OwnText, which: str) -> None:
    widget = attention_explorer(own) if which == "attention" else budget_explorer(own, ["h2o", "local"], 0.3)
    assert isinstance(widget, ipywidgets.VBox)
    *controls, _ = widget.children
    assert len(controls) == 3 and all(not getattr(c, "continuous_update", False) for c in controls)
    check_controls(widget)
