"""A document is attended alike alone, padded and packed: fractions are of its own length, nothing else's."""

import pytest
import torch
from torch import Tensor

from helpers import assert_close
from sinklora.attention.dispatch import attend, available_backends
from sinklora.attention.kinds.fixed import FixedPattern
from sinklora.attention.kinds.random_blocks import RandomPattern
from sinklora.attention.kinds.stride import StridePattern
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import PATTERNS

FRACTIONS: dict[str, Pattern] = {
    **PATTERNS,
    "a third, shifted": AttentionPattern(1 / 3, 3, 0.5),
    "an eighth": AttentionPattern(0.125, 4),
    "fixed, a tenth": FixedPattern(0.1, 1),
    "stride, a half": StridePattern(0.5),
    "random, a third": RandomPattern(1 / 3, block_tokens=2),
}
LENGTH = 21

by_backend = pytest.mark.parametrize(
    ("name", "backend"),
    [
        (name, backend)
        for name, pattern in FRACTIONS.items()
        for backend in available_backends(torch.empty(0), pattern)
    ],
)
by_company = pytest.mark.parametrize(
    ("before", "after"),
    ((0, 3), (0, 40), (17, 0), (5, 30)),
    ids=("padded", "padded far", "padded left", "packed"),
)


def row(tokens: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, heads, tokens, 8, generator=generator) for heads in (4, 2, 2)]


def outputs_and_gradients(
    pattern: Pattern, inputs: list[Tensor], ids: Tensor | None, backend: str, of: slice
) -> list[Tensor]:
    """The output of the tokens `of` and their inputs' gradients."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    output = attend(*leaves, pattern, document_ids=ids, backend=backend)[:, :, of]
    gradients = torch.autograd.grad(output.square().sum(), leaves)
    return [output, *(gradient[:, :, of] for gradient in gradients)]


@by_company
@by_backend
def test_attention_of_a_row_does_not_depend_on_its_company(
    name: str, backend: str, before: int, after: int
) -> None:
    pattern, alone = FRACTIONS[name], row(LENGTH, seed=0)
    expected = outputs_and_gradients(pattern, alone, None, backend, slice(None))
    company = row(before, 1), row(after, 2)
    together = [torch.cat(parts, 2) for parts in zip(company[0], alone, company[1], strict=True)]
    ids = torch.tensor([[1] * before + [2] * LENGTH + [0] * after])
    actual = outputs_and_gradients(pattern, together, ids, backend, slice(before, before + LENGTH))
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, atol=1e-5)


@pytest.mark.parametrize("name", FRACTIONS)
def test_masks_of_packed_rows_are_those_of_each_document(name: str) -> None:
    pattern, lengths = FRACTIONS[name], (13, 1, 21, 6)
    ids = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
    packed = pattern.visible(4, sum(lengths), ids)[0]
    alone = [pattern.visible(4, length) for length in lengths]
    expected = torch.stack([torch.block_diag(*(mask[head] for mask in alone)) for head in range(4)])
    assert packed.equal(expected.bool())


@pytest.mark.parametrize("name", [name for name in FRACTIONS if FRACTIONS[name].windows() is not None])
def test_windows_see_what_the_mask_shows(name: str) -> None:
    """`windows` is a promise to the fast paths."""
    windows = FRACTIONS[name].windows()
    assert windows is not None
    ids = torch.tensor([[0] * 13 + [1] * 8])
    assert windows.visible(4, 21, ids).equal(FRACTIONS[name].visible(4, 21, ids))


@pytest.mark.parametrize("name", [name for name in FRACTIONS if FRACTIONS[name].windows() is not None])
def test_windows_tile_a_document(name: str) -> None:
    windows = FRACTIONS[name].windows()
    assert windows is not None
    for length in range(1, 60):
        for shifted in (False, True):
            runs = windows.window_runs(length, shifted)
            assert sum(count * tokens for count, tokens in runs) == length
            assert all(count > 0 and 0 < tokens <= windows.group_tokens(length) for count, tokens in runs)
