"""What the pictures of attention are computed from, by hand."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers import assert_close
from sinklora.attention.patterns import PATTERNS, S2_WRAPPED
from sinklora.reproduction.patterns.figures import mask_figure, segmentation_figure
from sinklora.reproduction.patterns.study import (
    attention_maps,
    influence,
    leak_table,
    segmentation_steps,
    sink_mass,
    sink_table,
    sink_verdict,
    uniform_mass,
)


@pytest.mark.parametrize("num_tokens", [16, 24])
@pytest.mark.parametrize("num_heads", [2, 4])
def test_leaking_pairs_follow_the_formula(num_tokens: int, num_heads: int) -> None:
    found = leak_table(list(PATTERNS), num_tokens, num_heads).set_index("pattern")
    counted, formula = found["pairs that see the future"], found["(G/2)² per shifted head"]
    assert (counted == formula).all()
    assert counted["s2_wrapped"] == num_heads // 2 * (num_tokens // 8) ** 2
    assert counted.drop("s2_wrapped").sum() == 0


def test_influence_is_zero_exactly_where_nothing_is_seen() -> None:
    assert torch.equal(influence(S2_WRAPPED, 12) != 0, S2_WRAPPED.visible(2, 12))


def test_segmentation_and_reassembly_gives_back_the_order() -> None:
    steps = segmentation_steps(16, 4)
    assert np.array_equal(steps[-1][1], np.stack([np.arange(16)] * 2))
    _, rolled, windows = steps[1]
    assert rolled[1].tolist() == [*range(2, 16), 0, 1]
    assert sorted(rolled[1][windows[1] == 3].tolist()) == [0, 1, 14, 15]
    _, _, ragged = steps[2]
    assert np.bincount(ragged[1]).tolist() == [2, 4, 4, 4, 2]


@pytest.mark.parametrize(("num_tokens", "group_size"), [(10, 4), (9, 3)])
def test_steps_that_do_not_fit_are_named(num_tokens: int, group_size: int) -> None:
    with pytest.raises(ValueError, match=f"group_size={group_size}"):
        segmentation_steps(num_tokens, group_size)


def test_sink_mass_by_hand() -> None:
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0] = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.6, 0.2, 0.2, 0], [0.4, 0.1, 0.1, 0.4]])
    assert_close(sink_mass(maps, 1, after=2), [[0.5]], atol=1e-6)
    assert_close(sink_mass(maps, 2, after=2), [[0.65]], atol=1e-6)
    assert_close(uniform_mass(4, 1, after=2), (1 / 3 + 1 / 4) / 2, atol=1e-12)


def test_maps_of_the_base_model_are_attention() -> None:
    model = AutoModelForCausalLM.from_pretrained("data/base", dtype=torch.float32).eval()
    before = model.config._attn_implementation
    maps = attention_maps(model, np.arange(100, dtype=np.uint16))
    assert maps.shape == (4, 4, 100, 100)
    assert_close(maps.sum(-1), torch.ones(4, 4, 100), atol=1e-5)
    assert maps.triu(1).abs().max() == 0
    assert model.config._attn_implementation == before
    assert sink_table(maps).shape == (5, 5)


def test_figures_have_a_panel_for_every_pattern_and_step() -> None:
    assert len(mask_figure(["sf", "fixed", "random"], 16).axes) == 6
    assert len(segmentation_figure(16, 4).axes) == 4


def test_sinks_are_measured_from_token_64_on() -> None:
    maps = torch.zeros(1, 1, 66, 66)
    maps[0, 0, 63, 0] = 1.0
    assert sink_mass(maps, 1).item() == 0, "query 63 does not count"
    maps[0, 0, 64, 0] = 1.0
    assert sink_mass(maps, 1).item() == 0.5, "query 64 does"
    assert_close(uniform_mass(66, 4), (4 / 65 + 4 / 66) / 2, atol=1e-12)


def test_a_head_has_a_sink_from_twice_the_even_share_on() -> None:
    even = uniform_mass(66, 4)
    maps = torch.zeros(1, 3, 66, 66)
    for head, times in enumerate((0.5, 1.99, 2.01)):
        maps[0, head, 64:, 1] = times * even
    said = sink_verdict(maps)
    assert "1 of 3 heads give them more than twice that" in said
    assert f"The first 4 tokens draw {1.5 * even:.1%} of attention on average" in said
    assert f"{2.01 * even:.1%} in the strongest head; even attention would give {even:.1%}" in said
    table = sink_table(maps).set_index("layer")
    assert table.loc["0", "first 1"] == 0
    assert_close(float(table.loc["0", "first 4"]), 1.5 * even, atol=1e-6)
    assert_close(float(table.loc["uniform attention", "first 4"]), even, atol=1e-12)
