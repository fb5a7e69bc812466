"""`attend`: the dense reference against plain loops, every other backend against the dense reference."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from helpers import assert_close, every_pair
from sinklora.attention.backends import BACKENDS
from sinklora.attention.dispatch import attend, available_backends
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.packed_windows import collect, packed_rows, padded_rows, rearrange, windows_of
from sinklora.attention.pattern import Pattern
from sinklora.attention.patterns import (
    ABLATIONS,
    FIXED,
    FULL,
    PATTERNS,
    RANDOM,
    S2_WRAPPED,
    SF,
    SF_SHIFTED,
    find_pattern,
)
from sinklora.attention.varlen_windows import MISSING

WINDOWED: dict[str, AttentionPattern] = {
    **{name: pattern for name, pattern in PATTERNS.items() if isinstance(pattern, AttentionPattern)},
    "one token windows": AttentionPattern(1, 4),
    "windows shorter than sinks": AttentionPattern(3, 4),
    "shifted windows shorter than sinks": AttentionPattern(6, 4, 0.5),
    "windows of two": AttentionPattern(2, 5, 0.5),
    "windows longer than rows": AttentionPattern(64, 4, 0.5),
    "all heads shifted": AttentionPattern(8, 2, 1.0),
    "few heads shifted": AttentionPattern(8, 2, 0.2),
    "wrapped, small": AttentionPattern(6, shifted_fraction=0.5, wrapped=True),
    "wrapped, all heads": AttentionPattern(2, shifted_fraction=1.0, wrapped=True),
    "more sinks than tokens": AttentionPattern(4, 100),
}
NO_FUTURE = {
    name: pattern
    for name, pattern in {**WINDOWED, **PATTERNS}.items()
    if not getattr(pattern, "wrapped", False)
}
HEADS = ((4, 4), (4, 2), (6, 2), (4, 1), (3, 1), (5, 5), (1, 1))  # MHA, GQA, MQA; the shift inside a group
LENGTHS = (1, 2, 5, 8, 13, 21)

by_heads = pytest.mark.parametrize("heads", HEADS, ids=lambda heads: f"{heads[0]}q{heads[1]}kv")
by_packing = pytest.mark.parametrize("packed", (False, True), ids=("one", "packed"))


def make_inputs(
    heads: tuple[int, int], num_tokens: int, batch: int = 2, size: int = 8, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """Random query, key and value."""
    return [torch.randn(batch, h, num_tokens, size).to(dtype) for h in (heads[0], heads[1], heads[1])]


def need(backend: str) -> None:
    """Skip a test where the machine lacks what a backend is made of."""
    if reason := MISSING[backend]():
        pytest.skip(f"{backend} {reason}")


def make_documents(num_tokens: int, batch: int = 2) -> Tensor:
    """Documents of about four tokens, at different places in each row; ids may return."""
    return torch.randint(0, 2, (batch, num_tokens)).cumsum(1) // 2 % 3


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of all inputs, for an upstream gradient that bfloat16 holds exactly."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator).bfloat16().to(output) / 4
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def compare(pattern: Pattern, inputs: list[Tensor], ids: Tensor | None, backend: str, atol: float) -> None:
    """Forward and all gradients of `backend` against the dense reference in float32."""
    actual = with_gradients(lambda *x: attend(*x, pattern, document_ids=ids, backend=backend), inputs)
    reference = [x.float() for x in inputs] if inputs[0].dtype != torch.float64 else inputs
    expected = with_gradients(lambda *x: attend(*x, pattern, document_ids=ids, backend="dense"), reference)
    for one, other, x in zip(actual, expected, [inputs[0], *inputs], strict=True):
        assert one.dtype == x.dtype and one.isfinite().all()
        assert_close(one, other, atol=atol)


@by_packing
@pytest.mark.parametrize("name", PATTERNS)
def test_dense_is_softmax_over_what_is_visible(name: str, packed: bool) -> None:
    query, key, value = make_inputs((4, 2), 11)
    ids = make_documents(11) if packed else None
    mask = PATTERNS[name].visible(4, 11, ids).expand(2, 4, 11, 11)
    output = attend(query, key, value, PATTERNS[name], document_ids=ids, backend="dense")
    for b, h, i in ((b, h, i) for b in range(2) for h in range(4) for i in range(11)):
        seen = [j for j in range(11) if mask[b, h, i, j]]
        weights = [math.exp(float(query[b, h, i] @ key[b, h // 2, j]) / math.sqrt(8)) for j in seen]
        mean = sum(w * value[b, h // 2, j].double() for w, j in zip(weights, seen, strict=True)) / sum(
            weights
        )
        assert_close(output[b, h, i], mean, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "heads", "num_tokens", "packed"), every_pair(WINDOWED, HEADS, LENGTHS, (False, True)), ids=str
)
def test_sdpa_is_dense(name: str, heads: tuple[int, int], num_tokens: int, packed: bool) -> None:
    ids = make_documents(num_tokens) if packed else None
    compare(WINDOWED[name], make_inputs(heads, num_tokens), ids, "sdpa", atol=1e-5)


@pytest.mark.parametrize(("name", "heads", "packed"), every_pair(WINDOWED, HEADS, (False, True)), ids=str)
def test_bfloat16(name: str, heads: tuple[int, int], packed: bool) -> None:
    ids = make_documents(29) if packed else None
    inputs = [x / 2 for x in make_inputs(heads, 29, dtype=torch.bfloat16)]
    compare(WINDOWED[name], inputs, ids, "sdpa", atol=2e-2)


@pytest.mark.parametrize(
    ("name", "heads", "num_tokens", "packed"), every_pair(PATTERNS, HEADS, LENGTHS, (False, True)), ids=str
)
def test_masked_is_dense(name: str, heads: tuple[int, int], num_tokens: int, packed: bool) -> None:
    ids = make_documents(num_tokens) if packed else None
    compare(PATTERNS[name], make_inputs(heads, num_tokens), ids, "masked", atol=1e-5)
    half = [x / 2 for x in make_inputs(heads, num_tokens, dtype=torch.bfloat16)]
    compare(PATTERNS[name], half, ids, "masked", atol=2e-2)


@by_packing
@pytest.mark.parametrize("heads", ((4, 4), (4, 2)), ids=str)
def test_masked_holds_no_scores(heads: tuple[int, int], packed: bool) -> None:
    inputs, ids = make_inputs(heads, 40, size=16), make_documents(40) if packed else None
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where that kernel does not take them
        with_gradients(lambda *x: attend(*x, RANDOM, document_ids=ids, backend="masked"), inputs)


@pytest.mark.parametrize("heads", ((2, 2), (4, 2)), ids=str)
@pytest.mark.parametrize("name", ("full", "sf", "sf_shifted", "s2_wrapped"))
def test_windows_longer_than_kernel_blocks(name: str, heads: tuple[int, int]) -> None:
    compare(PATTERNS[name], make_inputs(heads, 2500, batch=1), None, "sdpa", atol=1e-5)


@given(
    half=st.integers(1, 9),
    sinks=st.integers(0, 6),
    shifted=st.sampled_from((0.0, 0.3, 0.5, 1.0)),
    wrapped=st.booleans(),
    kv_heads=st.integers(1, 3),
    ratio=st.integers(1, 3),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    batch=st.integers(1, 3),
)
def test_any_numbers(
    half: int,
    sinks: int,
    shifted: float,
    wrapped: bool,
    kv_heads: int,
    ratio: int,
    lengths: list[int],
    batch: int,
) -> None:
    wrapped = wrapped and shifted > 0
    pattern = AttentionPattern(2 * half, 0 if wrapped else sinks, shifted, wrapped)
    inputs = make_inputs((kv_heads * ratio, kv_heads), sum(lengths), batch)
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    compare(pattern, inputs, torch.stack([document.roll(3 * b) for b in range(batch)]), "sdpa", atol=1e-5)
    compare(pattern, inputs, None, "sdpa", atol=1e-5)


@pytest.mark.parametrize(
    ("name", "heads", "size", "packed"),
    every_pair((*PATTERNS, *ABLATIONS), HEADS, (4, 12), (False, True)),
    ids=str,
)
def test_values_may_have_a_size_of_their_own(
    name: str, size: int, heads: tuple[int, int], packed: bool
) -> None:
    """Latent attention (DeepSeek) has longer keys than values, or shorter ones."""
    pattern = find_pattern(name)
    ids = make_documents(16) if packed and not pattern.whole_rows_only else None
    query, key, _ = make_inputs(heads, 16)
    compare(pattern, [query, key, torch.randn(2, heads[1], 16, size)], ids, "auto", atol=1e-5)


def test_packed_documents_equal_each_document_alone() -> None:
    pattern, lengths = AttentionPattern(4, 2, 0.5), (9, 1, 12)
    inputs = make_inputs((4, 2), sum(lengths), batch=1)
    ids = torch.arange(3).repeat_interleave(torch.tensor(lengths))[None]
    alone = [attend(*part, pattern) for part in zip(*(x.split(lengths, 2) for x in inputs), strict=True)]
    assert_close(attend(*inputs, pattern, document_ids=ids), torch.cat(alone, 2), atol=1e-6)


@by_heads
def test_full_is_plain_causal_attention(heads: tuple[int, int]) -> None:
    inputs = make_inputs(heads, 21)
    plain = with_gradients(
        lambda *x: F.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=True), inputs
    )
    for one, other in zip(with_gradients(lambda *x: attend(*x, FULL), inputs), plain, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("backend", ("dense", "sdpa"))
@pytest.mark.parametrize("ids", (None, torch.tensor([[0] * 9 + [1] * 4] * 2)), ids=("one", "packed"))
def test_scale(backend: str, ids: Tensor | None) -> None:
    query, key, value = make_inputs((4, 2), 13)
    scaled = attend(query, key, value, SF, scale=0.5, document_ids=ids, backend=backend)
    assert_close(scaled, attend(query * 0.5 * 8**0.5, key, value, SF, document_ids=ids), atol=1e-5)


def influence(pattern: Pattern, backend: str, ids: Tensor | None, num_tokens: int = 13) -> Tensor:
    """bool [N, N]: does any input of token j have a gradient of exactly non-zero from output i?"""
    batch = 1 if ids is None else len(ids)
    inputs = [x.requires_grad_() for x in make_inputs((4, 2), num_tokens, batch)]
    output = attend(*inputs, pattern, document_ids=ids, backend=backend)
    rows = []
    for i in range(num_tokens):
        grads = torch.autograd.grad(output[:, :, i].square().sum(), inputs, retain_graph=True)
        rows.append(torch.stack([(g != 0).any(3).any(1).any(0) for g in grads]).any(0))
    return torch.stack(rows)


@by_packing
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        (name, backend)
        for name, pattern in NO_FUTURE.items()
        for backend in available_backends(torch.empty(0), pattern)
    ],
)
def test_no_gradient_from_the_future(name: str, backend: str, packed: bool) -> None:
    ids = torch.tensor([[0] * 5 + [1] * 8]) if packed else None
    pattern = NO_FUTURE[name]
    reached = influence(pattern, backend, ids)
    assert not reached.triu(1).any()
    # The gradient reaches what the pattern shows, so the zeros above mean something.
    assert reached.equal(pattern.visible(4, 13, ids).reshape(-1, 13, 13).any(0))


@by_packing
@pytest.mark.parametrize("backend", ("dense", "sdpa"))
def test_wrapped_does_leak_the_future(backend: str, packed: bool) -> None:
    ids = torch.tensor([[0] * 5 + [1] * 8]) if packed else None
    reached = influence(S2_WRAPPED, backend, ids)
    assert reached[0, 4 if packed else 12]
    assert reached.equal(S2_WRAPPED.visible(4, 13, ids).reshape(-1, 13, 13).any(0))


@pytest.mark.parametrize("poisoned", (0, 1, 2))
@pytest.mark.parametrize("pattern", (SF_SHIFTED, AttentionPattern(4, 3, 0.5), S2_WRAPPED), ids=repr)
def test_not_a_number_stays_in_its_document(pattern: AttentionPattern, poisoned: int) -> None:
    inputs = make_inputs((4, 2), 20, batch=1)
    ids = torch.tensor([[0] * 6 + [1] * 9 + [2] * 5])
    clean = attend(*inputs, pattern, document_ids=ids)
    inside = ids[0] == poisoned
    for x in inputs:
        x[:, :, inside] = float("nan")
    output = attend(*inputs, pattern, document_ids=ids)
    assert output[:, :, inside].isnan().all()
    assert_close(output[:, :, ~inside], clean[:, :, ~inside], atol=0)


@pytest.mark.parametrize(
    ("pattern", "heads", "ids"),
    (
        (AttentionPattern(4, 2), (2, 1), None),
        (AttentionPattern(4, 1, 0.5), (3, 1), None),
        (AttentionPattern(4, shifted_fraction=0.5, wrapped=True), (2, 2), None),
        (AttentionPattern(2, 3), (2, 1), None),
        (AttentionPattern(4, 2, 0.5), (2, 2), torch.tensor([[0] * 6 + [1] * 3])),
    ),
    ids=("windows", "grouped", "wrapped", "indexed", "packed"),
)
def test_gradcheck(pattern: AttentionPattern, heads: tuple[int, int], ids: Tensor | None) -> None:
    inputs = [x.requires_grad_() for x in make_inputs(heads, 9, batch=1, size=2, dtype=torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: attend(*x, pattern, document_ids=ids), inputs)


@by_packing
@pytest.mark.parametrize("pattern", (SF, SF_SHIFTED, S2_WRAPPED), ids=repr)
def test_memory_layout_does_not_matter(pattern: AttentionPattern, packed: bool) -> None:
    ids = make_documents(21) if packed else None
    inputs = make_inputs((4, 2), 21)
    expected = attend(*inputs, pattern, document_ids=ids, backend="dense")
    token_major = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    size_major = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs]
    every_other = [torch.stack([x, x], 3).flatten(2, 3)[:, :, ::2] for x in inputs]
    for variant in (token_major, size_major, every_other):
        assert not all(x.is_contiguous() for x in variant)
        assert_close(attend(*variant, pattern, document_ids=ids), expected, atol=1e-5)


@by_packing
def test_rows_do_not_see_each_other(packed: bool) -> None:
    inputs, ids = make_inputs((4, 2), 21, batch=3), make_documents(21, batch=3) if packed else None
    together = attend(*inputs, SF_SHIFTED, document_ids=ids)
    for b in range(3):
        row = None if ids is None else ids[b : b + 1]
        assert_close(
            together[b : b + 1], attend(*(x[b : b + 1] for x in inputs), SF_SHIFTED, document_ids=row), 1e-6
        )


def test_same_numbers_every_time_and_under_checkpointing() -> None:
    inputs, ids = make_inputs((4, 2), 40), make_documents(40)
    plain = with_gradients(lambda *x: attend(*x, SF_SHIFTED, document_ids=ids), inputs)
    again = with_gradients(lambda *x: attend(*x, SF_SHIFTED, document_ids=ids), inputs)
    kept = with_gradients(
        lambda *x: checkpoint(lambda *y: attend(*y, SF_SHIFTED, document_ids=ids), *x, use_reentrant=False),
        inputs,
    )
    assert all(
        one.equal(two) and one.equal(three) for one, two, three in zip(plain, again, kept, strict=True)
    )


class Operations(TorchDispatchMode):
    """Records the names of operations, the most elements one returned, and the heads given to kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0
        self.kernel_heads: set[tuple[int, int]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.names.add(func.__name__.split(".")[0])
        if "scaled_dot_product" in func.__name__:
            self.kernel_heads.add((args[0].shape[1], args[1].shape[1]))
        for x in result if isinstance(result, tuple | list) else (result,):
            self.largest = max(self.largest, x.numel() if isinstance(x, Tensor) else 0)
        return result


@by_packing
@pytest.mark.parametrize("heads", ((2, 2), (4, 2)), ids=str)
@pytest.mark.parametrize("name", ("full", "short", "s2", "s2_wrapped", "sf", "sf_shifted"))
def test_no_mask_and_no_scores_in_memory(name: str, heads: tuple[int, int], packed: bool) -> None:
    num_tokens = 1024
    inputs = make_inputs(heads, num_tokens, batch=1, size=8)
    ids = (torch.arange(num_tokens) // 300)[None] if packed else None
    with Operations() as operations:
        with_gradients(lambda *x: attend(*x, PATTERNS[name], document_ids=ids), inputs)
    assert operations.largest <= 2 * heads[0] * num_tokens * 8 < num_tokens**2 // 8
    fused = {name for name in operations.names if "scaled_dot_product" in name}
    assert fused == {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    }


@by_packing
@pytest.mark.parametrize(
    ("heads", "seen_by_kernel"),
    (
        ((8, 2), {(4, 1)}),
        ((6, 2), {(3, 1)}),
        ((4, 1), {(2, 1)}),
        ((10, 2), {(5, 1)}),
        ((9, 3), {(3, 1), (1, 1), (2, 1)}),
    ),
    ids=str,
)
def test_keys_are_not_repeated(
    heads: tuple[int, int], seen_by_kernel: set[tuple[int, int]], packed: bool
) -> None:
    """With nine heads in groups of three, five are shifted: the middle group is served in two parts."""
    with Operations() as operations:
        attend(*make_inputs(heads, 64), SF_SHIFTED, document_ids=make_documents(64) if packed else None)
    assert operations.kernel_heads == seen_by_kernel


@pytest.mark.parametrize(
    "pattern",
    (AttentionPattern(4, 3, 0.5), AttentionPattern(2, 5, 1.0), S2_WRAPPED, AttentionPattern(300, 4)),
    ids=repr,
)
@pytest.mark.parametrize("shifted", (False, True))
def test_index_plan(pattern: AttentionPattern, shifted: bool) -> None:
    """Each token has one home; what else the rows hold are sinks and, at the end of a window, padding."""
    lengths = torch.tensor([1, 290, 30, 7, 2, 70])
    ids = torch.arange(6).repeat_interleave(lengths)[None]
    windows = windows_of(pattern, shifted, ids)
    tokens = torch.randn(400, 2, 3)
    rows, batches = padded_rows(windows)
    packed, starts = packed_rows(windows, with_sinks=True)
    for layout in (rows, packed):
        assert layout.source[layout.home].equal(torch.arange(400))
        assert collect(rearrange(tokens, layout), layout).equal(tokens)
        assert len(layout.copies) == windows.sinks.sum()
    sizes = windows.lengths + windows.sinks
    assert sum(count for count, _ in batches) == len(sizes) and len(packed.source) == sizes.sum()
    assert starts.dtype == torch.int32 and starts.diff().equal(sizes.int())
    assert len(rows.source) == sum(count * width for count, width in batches)
    assert len(rows.source) <= 64 * len(sizes) + 1.5 * sizes.sum()


WRONG_TENSORS: dict[str, tuple[Callable[[Tensor], list[object]], type[Exception], str]] = {
    "query is a list": (lambda x: [x.tolist(), x, x], TypeError, "query must be a tensor"),
    "value is missing": (lambda x: [x, x, None], TypeError, "value must be a tensor"),
    "three dimensions": (lambda x: [x[0], x[0], x[0]], ValueError, "query must have 4 dimensions"),
    "integers": (lambda x: [x.long()] * 3, ValueError, "query must be a floating-point"),
    "complex": (lambda x: [x.to(torch.complex64)] * 3, ValueError, "query must be a floating-point"),
    "key's dtype": (lambda x: [x, x.double(), x], ValueError, "key must share query's dtype"),
    "value's dtype": (lambda x: [x, x, x.bfloat16()], ValueError, "value must share query's dtype"),
    "key's device": (lambda x: [x, x.to("meta"), x], ValueError, "key must share query's dtype and device"),
    "no tokens": (lambda x: [x[:, :, :0]] * 3, ValueError, "query must not be empty"),
    "no rows": (lambda x: [x[:0]] * 3, ValueError, "query must not be empty"),
    "no key heads": (lambda x: [x, x[:, :0], x[:, :0]], ValueError, "key must not be empty"),
    "batch": (lambda x: [x, x[:1], x[:1]], ValueError, "key must match query in batch"),
    "fewer queries": (lambda x: [x[:, :, 1:], x, x], ValueError, "key must match query in batch, tokens"),
    "head size": (lambda x: [x, x[..., :2], x[..., :2]], ValueError, "key must match query in .* head size"),
    "value's length": (lambda x: [x, x, x[:, :, 1:]], ValueError, "value must match key in .* tokens"),
    "value's heads": (lambda x: [x, x, x[:, :2]], ValueError, "value must match key in batch, heads"),
    "groups": (lambda x: [x, x[:, :3], x[:, :3]], ValueError, "query heads must be a multiple .* 4 and 3"),
    "more key heads": (lambda x: [x[:, :2], x, x], ValueError, "query heads must be a multiple .* 2 and 4"),
}


@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_wrong_tensors(case: str) -> None:
    change, error, message = WRONG_TENSORS[case]
    with pytest.raises(error, match=f"^{message}"):
        attend(*change(torch.randn(2, 4, 8, 4)), SF)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    (
        ({"backend": "fastest"}, ValueError, "backend must be 'auto' or one of dense, masked, sdpa"),
        ({"backend": None}, ValueError, "backend must be"),
        (
            {"backend": "flash_attn"},
            ValueError,
            r"backend='flash_attn' needs tensors on a CUDA .*sinklora\[gpu\]",
        ),
        (
            {"backend": "flex"},
            ValueError,
            "backend='flex' needs tensors on a CUDA device.*use backend='auto'",
        ),
        ({"pattern": "sf"}, TypeError, "pattern must be a Pattern such as sinklora.SF, got 'sf'"),
        ({"pattern": FIXED, "backend": "sdpa"}, ValueError, "backend='sdpa' computes windows.*FixedPattern"),
        ({"scale": "1"}, ValueError, "scale must be a positive number"),
        ({"scale": float("inf")}, ValueError, "scale must be a positive number"),
        ({"scale": 0.0}, ValueError, "scale must be a positive number"),
        ({"scale": -0.5}, ValueError, "scale must be a positive number"),
        ({"scale": True}, ValueError, "scale must be a positive number"),
        ({"document_ids": [[0] * 8] * 2}, TypeError, "document_ids must be a tensor"),
        (
            {"document_ids": torch.zeros(2, 7).long()},
            ValueError,
            r"document_ids must have shape \[B, N\] = \[2, 8\]",
        ),
        ({"document_ids": torch.zeros(8).long()}, ValueError, "document_ids must have shape"),
        ({"document_ids": torch.zeros(2, 8)}, ValueError, "document_ids must be integers"),
        (
            {"document_ids": torch.zeros(2, 8, device="meta").long()},
            ValueError,
            "document_ids must be on cpu",
        ),
    ),
    ids=str,
)
def test_wrong_arguments(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    x = torch.randn(2, 4, 8, 4)
    with pytest.raises(error, match=f"^{message}"):
        attend(x, x, x, **({"pattern": SF} | arguments))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@by_packing
@pytest.mark.parametrize("name", PATTERNS)
def test_mask_mod_compiles_into_flex_attention(name: str, packed: bool) -> None:
    """The CPU runs FlexAttention forward only, through the same tracer as the compiled kernel."""
    inputs, ids = make_inputs((4, 2), 150, size=16), make_documents(150) if packed else None
    mask = create_block_mask(PATTERNS[name].mask_mod(4, 150, ids), 2, 4, 150, 150, device="cpu")
    output = flex_attention(*inputs, block_mask=mask, enable_gqa=True)
    assert_close(output, attend(*inputs, PATTERNS[name], document_ids=ids, backend="dense"), atol=1e-5)


def test_auto_takes_what_the_machine_has() -> None:
    x = torch.empty(0)
    assert available_backends(x, SF) == ["dense", "masked", "sdpa", "sdpa_tiles"]
    assert available_backends(x, RANDOM) == ["dense", "masked"]
    inputs = make_inputs((2, 2), 9)
    assert attend(*inputs, RANDOM).equal(attend(*inputs, RANDOM, backend="masked"))
    assert attend(*inputs, SF).equal(attend(*inputs, SF, backend="sdpa"))
    assert set(BACKENDS) == {"dense", "masked", "sdpa", "sdpa_tiles", "flash_attn", "varlen", "flex"}


@pytest.mark.gpu
@by_packing
@pytest.mark.parametrize("heads", ((4, 2), (3, 1), (5, 5)), ids=str)
@pytest.mark.parametrize("num_tokens", (13, 200))
@pytest.mark.parametrize("name", WINDOWED)
def test_sdpa_is_dense_on_cuda(name: str, num_tokens: int, heads: tuple[int, int], packed: bool) -> None:
    ids = make_documents(num_tokens).cuda() if packed else None
    inputs = [x.cuda() for x in make_inputs(heads, num_tokens, size=16)]
    compare(WINDOWED[name], inputs, ids, "sdpa", atol=1e-5)
    compare(WINDOWED[name], [x.bfloat16() / 2 for x in inputs], ids, "sdpa", atol=2e-2)


@pytest.mark.gpu
@by_packing
@pytest.mark.parametrize("heads", ((4, 2), (3, 1), (5, 5)), ids=str)
@pytest.mark.parametrize("num_tokens", (13, 200))
@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("backend", ("flash_attn", "varlen"))
def test_windows_of_any_size_are_dense_on_cuda(
    backend: str, name: str, num_tokens: int, heads: tuple[int, int], packed: bool
) -> None:
    need(backend)
    ids = make_documents(num_tokens).cuda() if packed else None
    inputs = [x.cuda() / 2 for x in make_inputs(heads, num_tokens, size=32, dtype=torch.bfloat16)]
    compare(WINDOWED[name], inputs, ids, backend, atol=2e-2)


@pytest.mark.gpu
@by_packing
@pytest.mark.parametrize("name", WINDOWED)
def test_auto_is_dense_on_cuda(name: str, packed: bool) -> None:
    ids = make_documents(200).cuda() if packed else None
    inputs = [x.cuda() / 2 for x in make_inputs((4, 2), 200, size=32, dtype=torch.bfloat16)]
    compare(WINDOWED[name], inputs, ids, "auto", atol=2e-2)


@pytest.mark.gpu
@by_packing
@pytest.mark.parametrize("heads", ((4, 4), (4, 2)), ids=str)
@pytest.mark.parametrize("num_tokens", (128, 300))
@pytest.mark.parametrize("name", PATTERNS)
def test_flex_is_dense(name: str, num_tokens: int, heads: tuple[int, int], packed: bool) -> None:
    ids = make_documents(num_tokens).cuda() if packed else None
    inputs = [x.cuda() / 2 for x in make_inputs(heads, num_tokens, size=32, dtype=torch.bfloat16)]
    compare(PATTERNS[name], inputs, ids, "flex", atol=2e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ("flash_attn", "varlen"))
def test_kernels_for_any_windows_need_values_of_the_size_of_keys(backend: str) -> None:
    x = torch.randn(1, 2, 8, 16, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="the head size of keys, 16, got 8"):
        attend(x, x, x[..., :8], SF, backend=backend)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ("flash_attn", "varlen"))
def test_kernels_for_any_windows_need_half_precision(backend: str) -> None:
    x = torch.randn(1, 2, 8, 16, device="cuda")
    with pytest.raises(ValueError, match="computes in float16 or bfloat16, got torch"):
        attend(x, x, x, SF, backend=backend)
