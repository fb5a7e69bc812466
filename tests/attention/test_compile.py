"""`torch.compile` takes rows of any length: one graph for many of them, the same numbers."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from sinklora.attention.dispatch import attend
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import ABLATIONS, PATTERNS, SF, SHORT

# Windows that divide the row (of an even number of tokens, which rolling needs), and others.
WHOLE, RAGGED = (64, 80, 96, 128), (66, 71, 97, 131)


def graphs_made(pattern: Pattern, lengths: tuple[int, ...]) -> int:
    """How often attention by `pattern` is compiled for rows of these lengths, each compared with eager."""
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(
        lambda q, k, v: attend(q, k, v, pattern), backend=graphs, dynamic=True, fullgraph=True
    )
    for length in lengths:
        inputs = [torch.randn(1, heads, length, 8, requires_grad=True) for heads in (4, 2, 2)]
        output, expected = compiled(*inputs), attend(*inputs, pattern)
        assert output.equal(expected)
        gradients = (torch.autograd.grad(x.square().sum(), inputs) for x in (output, expected))
        assert all(one.equal(other) for one, other in zip(*gradients, strict=True))
    return graphs.frame_count


@pytest.mark.parametrize("name", ("full", "sf", "fixed", "stride", "random"))
def test_one_graph_serves_rows_of_many_lengths(name: str) -> None:
    assert graphs_made(PATTERNS[name], WHOLE) == 1


@pytest.mark.slow
def test_rolls_compile_for_rows_of_many_lengths() -> None:
    assert graphs_made(ABLATIONS["shift_up"], WHOLE) == 1


@pytest.mark.slow
def test_graphs_differ_in_kind_alone() -> None:
    """Whether a short window is left over at the end is a difference in kind; a length is none."""
    assert graphs_made(SHORT, (*WHOLE, *RAGGED)) == 2


@pytest.mark.slow
def test_packed_rows_of_many_lengths() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, v, ids: attend(q, k, v, SF, document_ids=ids), backend="eager", dynamic=True
    )
    for length in (40, 67):
        inputs = [torch.randn(1, heads, length, 8) for heads in (4, 2, 2)]
        ids = (torch.arange(length) >= length // 3).long()[None]
        assert compiled(*inputs, ids).equal(attend(*inputs, SF, document_ids=ids))
