"""The Triton kernel in Triton's interpreter, against a dense softmax and against the chunked pass."""

import importlib.util
from pathlib import Path

import pytest
import torch

from dense_softmax import dense_sums
from helpers import assert_close
from sinklora.cache.column_sums import flash_with_log_sum_exp, has_kernel, sum_columns
from sinklora.cache.scored_attention import attend_and_sum
from triton_interpreter import check_interpreted

HAS_TRITON = importlib.util.find_spec("triton") is not None
CASES = [  # heads, key/value heads, queries, keys, head size
    (2, 2, 64, 64, 16),
    (4, 2, 70, 70, 16),
    (4, 1, 33, 97, 24),
    (2, 2, 1, 65, 8),
    (2, 1, 5, 5, 64),
]


def check() -> None:
    """Run in a process whose Triton interprets; raises AssertionError."""
    generator = torch.Generator().manual_seed(0)
    for heads, kv_heads, queries, length, size in CASES:
        query = torch.randn(2, heads, queries, size, generator=generator)
        key, value = (torch.randn(2, kv_heads, length, size, generator=generator) for _ in range(2))
        for weights in (None, torch.rand(2, queries, generator=generator)):
            expected, log_sum_exp = dense_sums(query, key, 0.3, weights)
            found = sum_columns(query, key, log_sum_exp.float(), 0.3, weights=weights)
            assert_close(found, expected, atol=1e-4)
            assert_close(found, attend_and_sum(query, key, value, 0.3, weights=weights)[1], atol=1e-4)
    with pytest.raises(ValueError, match="log_sum_exp"):
        sum_columns(query, key, log_sum_exp[:, :1], 0.3)


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_kernel_equals_the_dense_softmax() -> None:
    check_interpreted("test_column_sums", Path(__file__).parent)


def test_heads_that_are_too_large_are_named_and_cpu_tensors_have_no_kernel() -> None:
    query = torch.zeros(1, 1, 4, 512)
    with pytest.raises(ValueError, match="head size 512"):
        sum_columns(query, query, torch.zeros(1, 1, 4), 1.0)
    assert not has_kernel(query, query)


@pytest.mark.gpu
@pytest.mark.parametrize("kv_heads", [8, 2, 1])
@pytest.mark.parametrize("tokens", [1, 100, 1024, 1500])
def test_flash_and_kernel_equal_the_chunked_pass(kv_heads: int, tokens: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    kind = {"device": "cuda", "dtype": torch.bfloat16, "generator": generator}
    query = torch.randn(2, 8, tokens, 64, **kind)  # type: ignore[call-overload]
    key, value = (torch.randn(2, kv_heads, tokens, 64, **kind) for _ in range(2))  # type: ignore[call-overload]
    assert has_kernel(query, key)
    output, log_sum_exp = flash_with_log_sum_exp(query, key, value, 0.125)
    found = sum_columns(query, key, log_sum_exp, 0.125)
    expected, sums = attend_and_sum(query.float(), key.float(), value.float(), 0.125)
    assert_close(output, expected, atol=2e-2)
    assert_close(found, sums, atol=2e-2, rtol=2e-2)
