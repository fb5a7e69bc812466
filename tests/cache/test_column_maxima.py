"""The most that any query looks at a key: blocks, and the Triton kernel, against the dense softmax."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dense_softmax import dense_maxima
from helpers import assert_close
from sinklora.cache.column_maxima import max_columns, replay_maxima, replay_maxima_in_blocks
from sinklora.cache.column_sums import flash_with_log_sum_exp, has_kernel_for
from triton_interpreter import check_interpreted

HAS_TRITON = importlib.util.find_spec("triton") is not None
CASES = [  # heads, key/value heads, queries, keys, head size
    (2, 2, 64, 64, 16),
    (4, 2, 70, 70, 16),
    (4, 1, 33, 97, 24),
    (2, 2, 1, 65, 8),
    (2, 1, 5, 5, 64),
]
# Batch, heads, key/value heads, queries, tokens: the last two take several blocks of queries and of heads.
SHAPES = [(2, 4, 4, 7, 7), (1, 4, 2, 5, 40), (2, 8, 4, 300, 2100), (1, 6, 6, 257, 3000)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def projections(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys as projections hand them out: views with heads behind tokens."""
    batch, heads, kv_heads, queries, length = shape
    torch.manual_seed(0)
    query = (torch.randn(batch, queries, heads, 16) * 3).to(dtype).transpose(1, 2)
    return query, torch.randn(batch, length, kv_heads, 16).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_maxima_are_those_of_the_dense_softmax(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    query, key = projections(shape, dtype)
    found = replay_maxima(query, key, 0.3)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close(found, dense_maxima(query, key, 0.3)[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_keys_and_queries_that_are_none(shape: tuple[int, int, int, int, int]) -> None:
    batch, _, kv_heads, queries, length = shape
    query, key = projections(shape, torch.float64)
    valid = torch.rand(batch, kv_heads, length) > 0.3
    valid[..., 0] = True  # no query sees nothing
    counts = [queries // 2, 0][:batch]
    query[:, :, queries // 2 :] = float("nan")  # never looked at
    found = replay_maxima(query, key, 0.3, counts=counts, valid=valid)
    expected, _ = dense_maxima(query[:1, :, : queries // 2], key[:1], 0.3, valid[:1])
    assert_close(found[:1], expected, atol=1e-12)
    assert (found[1:] == 0).all() and (found[~valid] == 0).all()


def test_scores_of_half_precision_do_not_overflow() -> None:
    query, key = (100 * torch.randn(1, 2, 50, 16, generator=torch.Generator().manual_seed(0)) for _ in "qk")
    found = replay_maxima(query.half(), key.half(), 1.0)
    assert_close(found, dense_maxima(query.half(), key.half(), 1.0)[0], atol=1e-3)


def check() -> None:
    """Run in a process whose Triton interprets; raises AssertionError."""
    generator = torch.Generator().manual_seed(0)
    for heads, kv_heads, queries, length, size in CASES:
        query = 3 * torch.randn(2, heads, queries, size, generator=generator)
        key = torch.randn(2, kv_heads, length, size, generator=generator)
        expected, log_sum_exp = dense_maxima(query, key, 0.3)
        found = max_columns(query, key, log_sum_exp.float(), 0.3)
        assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="log_sum_exp"):
        max_columns(query, key, log_sum_exp[:, :1], 0.3)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_kernel_equals_the_dense_softmax() -> None:
    check_interpreted("test_column_maxima", Path(__file__).parent)


def test_heads_that_are_too_large_are_named_and_cpu_tensors_have_no_kernel() -> None:
    query = torch.zeros(1, 1, 4, 512)
    with pytest.raises(ValueError, match=r"head size 512.*use replay_maxima_in_blocks"):
        max_columns(query, query, torch.zeros(1, 1, 4), 1.0)
    assert not has_kernel_for(query)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize(("queries", "tokens"), [(1, 1), (100, 100), (64, 1500), (1500, 1500)])
def test_flash_and_kernel_equal_the_blocks(kv_heads: int, queries: int, tokens: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    kind = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    query = torch.randn(2, 8, queries, 64, **kind)  # type: ignore[call-overload]
    key = torch.randn(2, kv_heads, tokens, 64, **kind)  # type: ignore[call-overload]
    assert has_kernel_for(query)
    _, log_sum_exp = flash_with_log_sum_exp(query, key, key, 0.125, causal=False)
    found = max_columns(query, key, log_sum_exp, 0.125)
    assert torch.equal(found, replay_maxima(query, key, 0.125))
    expected = replay_maxima_in_blocks(query.float(), key.float(), 0.125)
    assert_close(found, expected, atol=1e-5, rtol=2e-2)
