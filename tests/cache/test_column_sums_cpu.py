"""The compiled kernels against a dense softmax in float64, and what is made of them."""

import shutil

import pytest
import torch

from dense_softmax import dense_maxima, dense_sums
from helpers import assert_close
from sinklora.cache.column_maxima import replay_maxima, replay_maxima_in_blocks
from sinklora.cache.column_sums_cpu import (
    COLUMN_MAXIMA,
    COLUMN_SUMS,
    TOKENS_WORTH_COMPILING,
    flash_on_cpu,
    has_compiled_kernel,
    has_compiled_maxima,
    log_sum_exp_on_cpu,
    max_columns_on_cpu,
    sum_columns_on_cpu,
)
from sinklora.cache.scored_attention import attend_and_sum, attend_and_sum_in_blocks
from sinklora.operators.build import INSTRUCTIONS

HEADS = [(4, 4), (6, 2), (4, 1)]  # multi-head, grouped-query, multi-query
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OUTPUT_ERROR = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # flash's, of values up to 4

# The exponential errs by 20 units in the last place at most (1.2e-6); so does its argument, as scores are
# summed and scaled in float32.
RELATIVE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def _compiled() -> None:
    """Compile the kernels; skip only where nobody could."""
    if torch.backends.cpu.get_cpu_capability() not in INSTRUCTIONS or not (
        shutil.which("c++") or shutil.which("g++")
    ):
        pytest.skip("needs a C++ compiler and AVX2 or AVX-512")
    assert COLUMN_SUMS.find() is not None and COLUMN_MAXIMA.find() is not None


def projections(
    batch: int, heads: int, kv_heads: int, tokens: int, size: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values as projections hand them out: views with heads behind tokens."""
    query = torch.randn(batch, tokens, heads, size).to(dtype).transpose(1, 2)
    key, value = torch.randn(2, batch, tokens, kv_heads, size).to(dtype).transpose(2, 3)
    return query, key, value


@pytest.mark.parametrize(
    ("tokens", "dtype", "grouping"),
    [  # every pair of them
        (tokens, dtype, HEADS[(row + column) % len(HEADS)])
        for row, tokens in enumerate((1, 63, 64, 65, 600))
        for column, dtype in enumerate(DTYPES)
    ],
    ids=str,
)
def test_sums_are_the_dense_softmax(tokens: int, dtype: torch.dtype, grouping: tuple[int, int]) -> None:
    heads, kv_heads = grouping
    query, key, _ = projections(3, heads, kv_heads, tokens, 64, dtype)
    for weights in (None, torch.rand(3, tokens)):
        expected, log_sum_exp = dense_sums(query, key, 0.2, weights)
        found = sum_columns_on_cpu(query, key, log_sum_exp.float(), 0.2, weights=weights)
        assert found.dtype == torch.float32
        assert_close(found, expected, atol=1e-7, rtol=RELATIVE)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [7, 16, 32, 80, 96, 128])
def test_every_head_size_and_layout(size: int, dtype: torch.dtype) -> None:
    query, key, _ = projections(2, 4, 2, 130, size, dtype)
    expected, log_sum_exp = dense_sums(query, key, 0.2, None)
    transposed = log_sum_exp.float().mT.contiguous().mT
    apart = query.mT.contiguous().mT, key.mT.contiguous().mT  # numbers of a head do not lie side by side
    for q, k in ((query, key), (query.contiguous(), key.contiguous()), apart):
        assert_close(sum_columns_on_cpu(q, k, transposed, 0.2), expected, atol=1e-7, rtol=RELATIVE)
    same = query[:, :, :1].expand(query.shape)  # one query for all, by a stride of zero
    expected, log_sum_exp = dense_sums(same, key, 0.2, None)
    assert_close(sum_columns_on_cpu(same, key, log_sum_exp.float(), 0.2), expected, atol=1e-7, rtol=RELATIVE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_shares_near_one_and_near_nothing(dtype: torch.dtype) -> None:
    query, key, _ = projections(1, 2, 1, 300, 32, dtype)
    expected, log_sum_exp = dense_sums(query, key, 5.0, None)  # scores of 100: most shares are below 1e-38
    found = sum_columns_on_cpu(query, key, log_sum_exp.float(), 5.0)
    # A log-sum-exp of 100 is given to 4e-6.
    assert_close(found, expected, atol=1e-7, rtol=5e-5)


def test_threads_do_not_change_a_bit() -> None:
    query, key, value = projections(2, 6, 2, 700, 64, torch.bfloat16)
    _, log_sum_exp = flash_on_cpu(query, key, value, 0.125)
    alone = sum_columns_on_cpu(query, key, log_sum_exp, 0.125)
    try:
        torch.set_num_threads(2)
        assert torch.equal(sum_columns_on_cpu(query, key, log_sum_exp, 0.125), alone)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_attention_with_sums_is_the_same_in_blocks(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    query, key, value = projections(2, heads, kv_heads, TOKENS_WORTH_COMPILING + 9, 32, dtype)
    weights = torch.rand(2, TOKENS_WORTH_COMPILING + 9)
    assert has_compiled_kernel(query, key, value)
    output, sums = attend_and_sum(query, key, value, 0.125, weights=weights)
    exact = (query.double(), key.double(), value.double())
    expected, expected_sums = attend_and_sum_in_blocks(*exact, 0.125, weights=weights)
    assert output.dtype == dtype
    assert_close(output, expected, atol=OUTPUT_ERROR[dtype])
    # Flash errs by 6e-5 in the log-sum-exp of half precision.
    rtol = RELATIVE if dtype == torch.float32 else 1e-4
    assert_close(sums, expected_sums, atol=1e-7, rtol=rtol)


def test_values_with_a_head_spread_out_are_attended_to() -> None:
    query, key, value = projections(1, 4, 2, 100, 16, torch.float32)
    apart = [x.mT.contiguous().mT for x in (query, key, value)]
    for found, expected in zip(
        flash_on_cpu(*apart, 0.25), flash_on_cpu(query, key, value, 0.25), strict=True
    ):
        assert torch.equal(found, expected)


def test_what_the_kernel_does_not_serve_goes_through_blocks() -> None:
    query, key, value = projections(1, 4, 2, TOKENS_WORTH_COMPILING, 16, torch.float32)
    assert has_compiled_kernel(query, key, value)
    assert not has_compiled_kernel(*(x[:, :, 1:] for x in (query, key, value)))  # too short to be worth it
    assert not has_compiled_kernel(query[:, :, 8:], key, value)
    assert not has_compiled_kernel(query.double(), key.double(), value.double())
    assert not has_compiled_kernel(query, key, value[..., :8])
    assert not has_compiled_kernel(query, key.bfloat16(), value)
    query.requires_grad_()
    assert not has_compiled_kernel(query, key, value)
    with torch.no_grad():
        assert has_compiled_kernel(query, key, value)


def test_shapes_that_do_not_go_together_are_named() -> None:
    query, key, _ = projections(2, 4, 2, 10, 16, torch.float32)
    log_sum_exp = torch.zeros(2, 4, 10)
    with pytest.raises(RuntimeError, match=r"log_sum_exp has shape \[2, 3, 10\], expected \[2, 4, 10\]"):
        sum_columns_on_cpu(query, key, log_sum_exp[:, :3], 1.0)
    with pytest.raises(RuntimeError, match=r"weights has shape \[2, 9\], expected \[2, 10\]"):
        sum_columns_on_cpu(query, key, log_sum_exp, 1.0, weights=torch.ones(2, 9))
    for wrong in (key[:, :, :9], key[:1], key[..., :8], torch.zeros(2, 3, 10, 16)):
        with pytest.raises(RuntimeError, match=r"key has shape .* does not go with query's"):
            sum_columns_on_cpu(query, wrong, log_sum_exp, 1.0)
    with pytest.raises(RuntimeError, match="query and key have 3 and 4 dimensions"):
        sum_columns_on_cpu(query[0], key, log_sum_exp, 1.0)


# --- maxima -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "tokens"), [(1, 1), (63, 64), (65, 65), (1, 200), (300, 130), (600, 600)]
)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_maxima_are_those_of_the_dense_softmax(
    heads: int, kv_heads: int, queries: int, tokens: int, dtype: torch.dtype
) -> None:
    query, key, _ = projections(3, heads, kv_heads, max(queries, tokens), 32, dtype)
    query, key = query[:, :, :queries], key[:, :, :tokens]
    for scale in (0.2, 5.0):
        expected, log_sum_exp = dense_maxima(query, key, scale)
        found = max_columns_on_cpu(query, key, log_sum_exp.float(), scale)
        assert found.dtype == torch.float32
        assert_close(found, expected, atol=1e-7, rtol=RELATIVE if scale < 1 else 5e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_a_replay_is_the_same_in_blocks(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    query, key, _ = projections(2, heads, kv_heads, TOKENS_WORTH_COMPILING + 9, 32, dtype)
    for asked in (query, query[:, :, 9:]):
        assert has_compiled_maxima(asked, key)
        expected = replay_maxima_in_blocks(asked.double(), key.double(), 0.5)
        rtol = 2e-5 if dtype == torch.float32 else 1e-4
        assert_close(replay_maxima(asked, key, 0.5), expected, atol=1e-7, rtol=rtol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "tokens"), [(1, 1), (1, 300), (64, 256), (65, 257), (130, 1), (200, 900)]
)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_log_sum_exp_is_that_of_all_keys(
    heads: int, kv_heads: int, queries: int, tokens: int, dtype: torch.dtype
) -> None:
    query, key, _ = projections(2, heads, kv_heads, max(queries, tokens), 32, dtype)
    query, key = query[:, :, :queries], key[:, :, :tokens]
    for scale in (0.2, 5.0):
        scores = query.double() @ key.double().repeat_interleave(heads // kv_heads, 1).mT * scale
        found = log_sum_exp_on_cpu(query, key, scale)
        assert_close(found, scores.logsumexp(-1), atol=1.5e-5 * scale, rtol=4e-7)
    # Far below what stands in place of keys behind the last one.
    query, key = -40 * (query.abs() + 1), key.abs() + 1
    scores = query.double() @ key.double().repeat_interleave(heads // kv_heads, 1).mT
    assert_close(log_sum_exp_on_cpu(query, key, 1.0), scores.logsumexp(-1), atol=0, rtol=4e-6)


def test_what_the_kernel_for_maxima_does_not_serve_goes_through_blocks() -> None:
    query, key, _ = projections(1, 4, 2, TOKENS_WORTH_COMPILING, 16, torch.float32)
    assert has_compiled_maxima(query, key)
    assert not has_compiled_maxima(query[:, :, 1:], key)  # too little to be worth it
    assert not has_compiled_maxima(query.double(), key.double())
    assert not has_compiled_maxima(query, key.bfloat16())
    valid = torch.ones(1, 2, TOKENS_WORTH_COMPILING, dtype=torch.bool)
    for given in ({"counts": [TOKENS_WORTH_COMPILING]}, {"valid": valid}):
        assert torch.equal(replay_maxima(query, key, 0.5, **given), replay_maxima_in_blocks(query, key, 0.5))


def test_shapes_of_maxima_that_do_not_go_together_are_named() -> None:
    query, key, _ = projections(2, 4, 2, 10, 16, torch.float32)
    with pytest.raises(RuntimeError, match=r"log_sum_exp has shape \[2, 3, 10\], expected \[2, 4, 10\]"):
        max_columns_on_cpu(query, key, torch.zeros(2, 3, 10), 1.0)
    for wrong in (key[:1], key[..., :8], torch.zeros(2, 3, 10, 16)):
        with pytest.raises(RuntimeError, match=r"key has shape .* does not go with query's"):
            max_columns_on_cpu(query, wrong, torch.zeros(2, 4, 10), 1.0)


def test_bfloat16_is_summed_where_pytorch_may_not_use_onednn() -> None:
    # Products of pairs are oneDNN's, so that float32 has to serve.
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 1100, 16, dtype=torch.bfloat16)
    log_sum_exp = flash_on_cpu(query, key, value, 0.25)[1]
    sums = sum_columns_on_cpu(query, key, log_sum_exp, 0.25)
    with torch.backends.mkldnn.flags(enabled=False):
        assert_close(sum_columns_on_cpu(query, key, log_sum_exp, 0.25), sums, rtol=1e-4, atol=1e-5)
