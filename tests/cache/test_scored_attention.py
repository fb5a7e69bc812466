"""Attention with its column sums against the dense softmax, over several blocks of queries and heads."""

import pytest
import torch
from torch.testing import assert_close

from sinklora.cache.scored_attention import attend_and_sum, attend_newest, attend_once, blocks

# Batch, heads, key/value heads, queries, tokens: the last two take several blocks of queries and of heads.
SHAPES = [(2, 4, 4, 7, 7), (1, 4, 2, 5, 40), (2, 8, 4, 300, 2100), (1, 6, 6, 257, 3000)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("hiding", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_sums_are_the_dense_softmax(
    shape: tuple[int, int, int, int, int], hiding: bool, weighted: bool
) -> None:
    batch, heads, kv_heads, queries, length = shape
    torch.manual_seed(0)
    # Views with heads behind tokens, as projections hand them out.
    query = torch.randn(batch, queries, heads, 16).transpose(1, 2)
    key, value = torch.randn(2, batch, length, kv_heads, 16).transpose(2, 3)
    valid = torch.rand(batch, kv_heads, length) > 0.2
    valid[..., : length - queries + 1] = True  # no query sees nothing
    weights = torch.rand(batch, queries)

    output, sums = attend_and_sum(
        query, key, value, 0.3, weights=weights if weighted else None, valid=valid if hiding else None
    )

    groups = heads // kv_heads
    scores = query.double() @ key.double().repeat_interleave(groups, 1).mT * 0.3
    seen = torch.ones(queries, length, dtype=torch.bool).tril(length - queries)
    seen = seen & (valid.repeat_interleave(groups, 1)[:, :, None] if hiding else True)
    softmax = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    counted = softmax * (weights[:, None, :, None] if weighted else 1)
    assert_close(output, (softmax @ value.double().repeat_interleave(groups, 1)).float())
    assert_close(sums, counted.sum(2).unflatten(1, (kv_heads, groups)).sum(2).float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_exact_as_sdpa_and_does_not_overflow(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key = (torch.randn(2, 1, 2, 6000, 16) * 2).to(dtype)
    value = (40 + torch.randn(1, 2, 6000, 16)).to(dtype)
    output, sums = attend_and_sum(query, key, value, 0.25)
    exact, expected = attend_and_sum(query.double(), key.double(), value.double(), 0.25)
    sdpa = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.25)
    assert (output - exact).abs().max() <= 1.5 * (sdpa - exact).abs().max()
    assert_close(sums, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hiding", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [6, 2, 1])
def test_one_query_a_row_sees_what_the_dense_softmax_sees(
    kv_heads: int, dtype: torch.dtype, hiding: bool
) -> None:
    torch.manual_seed(0)
    query = torch.randn(3, 1, 6, 16, dtype=dtype).transpose(1, 2)
    key, value = torch.randn(2, 3, kv_heads, 50, 16, dtype=dtype)
    visible = torch.rand(3, 1, 1, 50) > 0.3 if hiding else None
    weights = torch.empty(3, kv_heads, 6 // kv_heads, 50)
    scores = query.double() @ key.double().repeat_interleave(6 // kv_heads, 1).mT * 0.3
    softmax = (scores if visible is None else scores.masked_fill(~visible, float("-inf"))).softmax(-1)
    exact = (softmax @ value.double().repeat_interleave(6 // kv_heads, 1)).to(dtype)
    close = {"rtol": 2e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    assert_close(attend_newest(query, key, value, 0.3, visible), exact, **close)
    assert_close(attend_once(query, key, value, 0.3, weights, visible), exact, **close)
    assert_close(weights.flatten(1, 2)[:, :, None], softmax.float(), rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_cover_every_query_of_every_head_once(shape: tuple[int, int, int, int, int]) -> None:
    batch, heads, kv_heads, queries, length = shape
    times = torch.zeros(batch, kv_heads, queries)
    pieces = list(blocks(torch.empty(batch, kv_heads, length, 1), queries, heads // kv_heads))
    for row, part, begin, end in pieces:
        times[row, part, begin:end] += 1
    assert (times == 1).all()
    assert len(pieces) == batch if queries < 100 else len(pieces) > 3 * batch
