"""SnapKV's scores against its release's definition, written out densely, and by hand."""

import torch
from torch import Tensor

from helpers import assert_close
from sinklora.cache.observation_window import window_attention
from sinklora.cache.policies import UNBOUNDED
from sinklora.cache.scores import NewTokens
from sinklora.cache.snapkv import SnapKV, neighbour_means

GENERATOR = torch.Generator().manual_seed(4)


def prompt(heads: int = 4, kv_heads: int = 2, length: int = 30, rows: int = 2) -> NewTokens:
    """A whole prompt of random queries and keys."""
    query, key = (
        torch.randn(rows, h, length, 8, generator=GENERATOR, dtype=torch.float64) for h in (heads, kv_heads)
    )
    positions = torch.arange(length).expand(rows, kv_heads, -1)
    return NewTokens(query, key, key, positions, 0, [length] * rows, [0] * rows, 0.4, complete=True)


def released(new: NewTokens, window: int, pool: int) -> Tensor:
    """Scores [B, H, N - window] of query heads before their mean, from the whole causal softmax."""
    groups, length = new.query.shape[1] // new.keys.shape[1], new.query.shape[2]
    logits = new.query @ new.keys.repeat_interleave(groups, 1).mT * new.scale
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = logits.masked_fill(future, float("-inf")).softmax(-1)
    mean = weights[:, :, -window:, :-window].mean(2)
    padded = torch.nn.functional.pad(mean, (pool // 2, pool // 2))
    return padded.unfold(-1, pool, 1).mean(-1)


def test_scores_are_those_of_the_release() -> None:
    new = prompt()
    for policy, window in ((SnapKV(20, window=6), 6), (SnapKV(8, pool=3), 4), (SnapKV(500, window=1), 1)):
        scorer = policy.make_scorer(new.keys.new_empty(2, 2, 0))
        scorer.extend(new, None)
        expected = released(new, window, policy.pool).unflatten(1, (2, 2)).mean(2)
        assert_close(scorer.state["scores"][..., :-window], expected, atol=1e-12)
        assert (scorer.state["scores"][..., -window:] == 0).all()


def test_a_window_by_hand() -> None:
    zeros = torch.zeros(1, 1, 5, 2)
    new = NewTokens(zeros, zeros, zeros, torch.arange(5)[None, None], 0, [5], [0], 1.0)
    # The last queries see four and five tokens, all alike.
    seen_by_both = (1 / 4 + 1 / 5) / 2
    assert_close(window_attention(new, [2])[0, 0], [seen_by_both] * 4 + [0.1], atol=1e-7)


def test_means_are_those_of_neighbours_in_the_text() -> None:
    x = torch.tensor([[[9.0, 3.0, 0.0, 6.0]]])
    assert_close(neighbour_means(x, None, 3), [[[4.0, 4.0, 3.0, 2.0]]], atol=1e-6)
    assert_close(neighbour_means(x, None, 1), x, atol=0)
    # In the text: 3 at 0, 6 at 2, 9 at 7; the third slot is free.
    positions = torch.tensor([[[7, 0, -1, 2]]])
    assert_close(neighbour_means(x, positions, 3), [[[5.0, 3.0, 3.0, 6.0]]], atol=1e-6)


def test_the_window_is_at_most_half_of_the_budget() -> None:
    assert SnapKV(0.2).split(1000) == (0, 136, 64)
    assert SnapKV(0.2).split(100) == (0, 10, 10)
    assert SnapKV(9).split(100) == (0, 5, 4)
    assert SnapKV(1).split(100) == (0, 0, 1)
    assert SnapKV(0.5, window=3).split(20) == (0, 7, 3)
    assert SnapKV(UNBOUNDED).split(9).recent == 64


def test_each_row_has_a_window_of_its_own() -> None:
    new = prompt()
    both = window_attention(new, [2, 5])
    for row, window in enumerate((2, 5)):
        # Rows are multiplied together or one by one, which some processors round differently.
        assert_close(both[row], window_attention(new, [window, window])[row], atol=1e-12)
    assert (both[0] - window_attention(new, [5, 5])[0]).abs().max() > 1e-3


def test_heads_share_what_the_policy_says() -> None:
    assert SnapKV(8).sharing.among == "head"
    assert SnapKV(8, share="layer", own_share=0.3).sharing == ("layer", 0.3)
