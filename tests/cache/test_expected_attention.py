"""Expected Attention's scores against its paper's formulas, written out naively."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cache_simulation import turn
from helpers import assert_close
from sinklora.cache.expected_attention import ExpectedAttention, mean_rotation
from sinklora.cache.scores import NewTokens

SIZE = 8
FREQUENCIES = torch.tensor([1.0, 0.3, 0.1, 0.02])


class Halves:
    """Rotary position embeddings by complex numbers."""

    def rotated(self, x: Tensor, positions: Tensor, length: int) -> Tensor:
        return self.turned(x, positions, length)

    def turned(self, x: Tensor, by: Tensor, length: int) -> Tensor:
        assert int(by.max()) < length and int(by.min()) >= 0
        batch, heads, count, _ = x.shape
        by = by.expand(batch, heads, count)
        return torch.stack(
            [torch.stack([turn(x[b, h], by[b, h], FREQUENCIES) for h in range(heads)]) for b in range(batch)]
        )


def rotation_to(position: int) -> Tensor:
    """The matrix that puts a vector at a position."""
    return turn(torch.eye(SIZE).double(), torch.full((SIZE,), position), FREQUENCIES).T


def prompt(length: int = 15, rows: int = 2) -> tuple[NewTokens, Tensor]:
    """A whole prompt, and its queries without positions [B, H, N, D]."""
    generator = torch.Generator().manual_seed(6)
    plain, keys, values = (
        torch.randn(rows, heads, length, SIZE, generator=generator, dtype=torch.float64)
        for heads in (4, 2, 2)
    )
    query = Halves().turned(plain, torch.arange(length).expand(1, 1, -1), length)
    at = torch.arange(length).expand(rows, 2, -1)
    counts, before = [length] * rows, [0] * rows
    new = NewTokens(query, keys, values, at, 0, counts, before, 0.4, complete=True, rotation=Halves())
    return new, plain


@pytest.mark.parametrize("positions", [1, 2, 3, 5, 12, 512])
def test_the_mean_rotation_is_the_mean_of_rotations(positions: int) -> None:
    expected = torch.stack([rotation_to(ahead) for ahead in range(positions)]).mean(0)
    found = mean_rotation(Halves(), positions, torch.zeros(1, SIZE).double())
    assert_close(found.T, expected, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.02])
def test_scores_are_those_of_the_paper(epsilon: float) -> None:
    sinks, future, length = 3, 7, 15
    new, plain = prompt(length)
    policy = ExpectedAttention(9, sink_tokens=sinks, future=future, epsilon=epsilon)
    scorer = policy.make_scorer(new.keys.new_empty(2, 2, 0))
    scorer.extend(new, None)
    rotation = torch.stack([rotation_to(length + ahead) for ahead in range(future)]).mean(0)
    for row in range(2):
        for kv_head in range(2):
            keys, values = (x[row, kv_head, sinks:] for x in (new.keys, new.values))
            weights = []
            for head in (2 * kv_head, 2 * kv_head + 1):
                queries = plain[row, head, sinks:]
                mean = queries.mean(0)
                covariance = sum(torch.outer(q - mean, q - mean) for q in queries) / len(queries)
                moved, spread = rotation @ mean, rotation @ covariance @ rotation.T
                expected = [torch.exp(0.4 * k @ moved + 0.4**2 * k @ spread @ k / 2) for k in keys]
                weights.append(torch.stack(expected) / sum(expected))
            found = scorer.state["scores"][row, kv_head]
            assert_close(found[sinks:], (sum(weights) / 2 + epsilon) * values.norm(dim=-1), atol=1e-12)
            first = new.values[row, kv_head, :sinks]  # not expected to be looked at
            assert_close(found[:sinks], epsilon * first.norm(dim=-1), atol=1e-12)


def test_what_is_expected_is_what_many_queries_give() -> None:
    new, _ = prompt(length=6, rows=1)
    new = replace(new, query=new.query[:, :1], keys=new.keys[:, :1], values=new.values[:, :1])
    new = replace(new, positions=new.positions[:, :1])
    # Of one position, and without sink tokens: queries are used as they are.
    scorer = ExpectedAttention(9, sink_tokens=0, future=1).make_scorer(new.keys.new_empty(1, 1, 0))
    scorer.extend(new, None)
    moved = Halves().turned(new.query, torch.arange(6, 0, -1).expand(1, 1, -1), 7)[0, 0]
    draws = torch.randn(400_000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = moved.mean(0) + draws @ (moved - moved.mean(0)) / 6**0.5  # of the same mean and covariance
    looks = (0.4 * drawn @ new.keys[0, 0].T).exp().mean(0)
    expected = looks / looks.sum() * new.values[0, 0].norm(dim=-1)
    assert_close(scorer.state["scores"][0, 0], expected, atol=0, rtol=0.03)


def test_short_turns_are_as_if_decoded() -> None:
    scorer = ExpectedAttention(9, sink_tokens=4).make_scorer(torch.zeros(1, 1, 0))
    given = {(before, count): scorer.scores_row(before, count) for before in (0, 3, 9) for count in (1, 2, 6)}
    assert [rows for rows, scores in given.items() if scores] == [(0, 6), (3, 6), (9, 2), (9, 6)]


def test_the_newest_have_a_share_of_the_budget() -> None:
    assert ExpectedAttention(0.2).split(1000) == (4, 176, 20)
    assert ExpectedAttention(0.2).split(20) == (3, 0, 1)
    assert ExpectedAttention(8, recent_share=0, sink_tokens=2).split(20) == (2, 5, 1)
    assert ExpectedAttention(8, recent_share=1).split(20) == (4, 0, 4)
    assert ExpectedAttention(0.01).split(9) == (0, 0, 1)
    assert ExpectedAttention(8, share="model", own_share=0).sharing == ("model", 0)
