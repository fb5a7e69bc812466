"""The compiled backward pass of causal attention, against PyTorch's own in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import assert_close
from sinklora.attention.causal_backward import CAUSAL_BACKWARD, causal_attention, has_compiled_backward
from sinklora.attention.dispatch import attend
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import FULL, PATTERNS, SF, SHORT

needs_tiles = pytest.mark.skipif(
    not torch.cpu._is_amx_tile_supported(), reason="needs a processor with tiles for bfloat16"
)

HEADS = [(4, 4), (9, 3), (4, 1)]  # multi-head, grouped-query, multi-query


def projections(
    heads: tuple[int, int], tokens: int, size: int, batch: int = 2
) -> tuple[list[Tensor], Tensor]:
    """Query, key and value as projections hand them out, views with heads behind tokens, and a gradient."""
    torch.manual_seed(0)
    query, key, value, upstream = (
        torch.randn(batch, tokens, number, size).bfloat16().transpose(1, 2)
        for number in (heads[0], heads[1], heads[1], heads[0])
    )
    return [query, key, value], upstream


def gradients(output: Tensor, inputs: list[Tensor], upstream: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, upstream.to(output.dtype))


def exact(inputs: list[Tensor], upstream: Tensor, scale: float) -> tuple[Tensor, ...]:
    own = [x.double().requires_grad_() for x in inputs]
    output = F.scaled_dot_product_attention(*own, is_causal=True, scale=scale, enable_gqa=True)
    return gradients(output, own, upstream)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@needs_tiles
@pytest.mark.parametrize("tokens", [1024, 1025, 1300])  # whole blocks of keys and queries, and others
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_gradients_are_those_of_attention(heads: tuple[int, int], tokens: int) -> None:
    inputs, upstream = projections(heads, tokens, 32)
    own = [x.requires_grad_() for x in inputs]
    assert has_compiled_backward(*own)
    found = gradients(causal_attention(*own, 0.3), own, upstream)
    for actual, expected in zip(found, exact(inputs, upstream, 0.3), strict=True):
        assert actual.dtype == torch.bfloat16
        assert error(actual, expected) < 0.004  # bfloat16 keeps eight bits


@needs_tiles
@pytest.mark.parametrize("size", [6, 64, 80, 96, 128])
def test_every_head_size(size: int) -> None:
    """Also short rows, which the operator serves though they do not pay for compiling it."""
    operator = CAUSAL_BACKWARD.find()
    assert operator is not None
    for tokens in (1, 64, 131):
        (query, key, value), upstream = projections((4, 2), tokens, size)
        output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=0.2
        )
        to_query, to_key, to_value = operator(query, key, value, output, log_sum_exp, upstream, 0.2)
        found = (to_query.sum(0), *(x.unflatten(1, (2, -1)).sum(2) for x in (to_key, to_value)))
        for actual, expected in zip(found, exact([query, key, value], upstream, 0.2), strict=True):
            assert_close(actual, expected, atol=0.004 * float(expected.abs().max()) + 0.01)


@needs_tiles
def test_the_number_of_threads_changes_nothing() -> None:
    inputs, upstream = projections((9, 3), 1024, 64, batch=1)
    own, threads, found = [x.requires_grad_() for x in inputs], torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(gradients(causal_attention(*own, 0.1), own, upstream))
    finally:
        torch.set_num_threads(threads)
    assert all(one.equal(other) for one, other in zip(*found, strict=True))


@needs_tiles
@pytest.mark.parametrize("packed", [False, True], ids=["whole", "packed"])
@pytest.mark.parametrize(
    "pattern",
    [FULL, SHORT, SF, PATTERNS["s2"]],
    ids=["full", "short", "sf", "s2"],
)
def test_patterns_attend_with_it(pattern: Pattern, packed: bool) -> None:
    """Forward as `sdpa`; gradients nearer to the dense ones in float32 than bfloat16's rounding."""
    tokens = 2300
    inputs, upstream = projections((4, 2), tokens, 16, batch=1)
    ids = (torch.arange(tokens) >= 900).long()[None] if packed else None
    own = [x.requires_grad_() for x in inputs]
    output = attend(*own, pattern, document_ids=ids, backend="sdpa_tiles")
    assert output.equal(attend(*own, pattern, document_ids=ids, backend="sdpa"))
    assert "_CausalAttentionBackward" in graph(output)
    precise = [x.detach().float().requires_grad_() for x in inputs]
    dense = attend(*precise, pattern, document_ids=ids, backend="dense")
    expected = gradients(dense, precise, upstream)
    for actual, wanted in zip(gradients(output, own, upstream), expected, strict=True):
        assert error(actual, wanted) < 0.008


def graph(output: Tensor) -> set[str]:
    """Names of all functions that `output` was computed by."""
    names, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None:
            names.add(type(node).__name__)
            left += [parent for parent, _ in node.next_functions]
    return names


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.float(),
        lambda x: x[:, :, :400],  # too short to pay for compiling, two rows together
        lambda x: x.detach(),
    ],
    ids=["float32", "short", "no gradient"],
)
def test_other_inputs_take_pytorchs_own(change) -> None:  # type: ignore[no-untyped-def]
    inputs, _ = projections((4, 2), 1024, 16)
    query, key, value = (change(x.requires_grad_()) for x in inputs)
    assert not has_compiled_backward(query, key, value)
    own = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    assert causal_attention(query, key, value, 0.3).equal(own)


WITHOUT = """
import torch
from sinklora.attention.causal_backward import causal_attention
x = torch.randn(1, 2, 1100, 16).bfloat16().requires_grad_()
causal_attention(x, x, x, 0.3).sum().backward()
print(x.grad.isfinite().all().item())
"""


def test_without_a_compiler_pytorchs_own_serves(tmp_path: Path) -> None:
    environment = {**os.environ, "SINKLORA_CACHE": str(tmp_path), "CXX": "false", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "True\n"
