"""Windows of any size in one call of a kernel, with a plain loop over sequences as the kernel."""

import inspect

import pytest
import torch
from test_attend import WINDOWED, by_packing, make_documents, make_inputs, with_gradients
from torch import Tensor

from helpers import assert_close
from sinklora.attention.backends import BACKENDS, varlen
from sinklora.attention.dispatch import attend, available_backends
from sinklora.attention.kinds.windows import AttentionPattern
from sinklora.attention.patterns import PATTERNS, RANDOM, S2_WRAPPED, SF
from sinklora.attention.varlen_windows import attend_windows, missing_varlen, torch_kernel

S2 = PATTERNS["s2"]


class Loop:
    """The truth about a kernel: sequence by sequence, and what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, ...]] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_starts: Tensor,
        key_starts: Tensor,
        longest_query: int,
        longest_key: int,
        scale: float,
    ) -> Tensor:
        self.calls.append((query, key, value))
        assert query_starts.dtype == key_starts.dtype == torch.int32
        assert len(query_starts) == len(key_starts)
        queries, keys = query_starts.tolist(), key_starts.tolist()
        assert (queries[0], queries[-1], keys[0], keys[-1]) == (0, len(query), 0, len(key))
        lengths = [(b - a, d - c) for a, b, c, d in zip(queries, queries[1:], keys, keys[1:], strict=False)]
        assert (longest_query, longest_key) == tuple(map(max, zip(*lengths, strict=True)))
        assert min(length for length, _ in lengths) > 0
        groups = query.shape[1] // key.shape[1]
        outputs = []
        for n, (own, seen) in enumerate(lengths):
            q = query[queries[n] : queries[n + 1]]
            k, v = (x[keys[n] : keys[n + 1]].repeat_interleave(groups, 1) for x in (key, value))
            later = torch.ones(own, seen, dtype=torch.bool).triu(seen - own + 1)
            scores = torch.einsum("qhd,khd->hqk", q, k) * scale
            outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(later, -torch.inf).softmax(-1), v))
        return torch.cat(outputs)


@by_packing
@pytest.mark.parametrize("heads", ((4, 2), (3, 1), (5, 5)), ids=str)
@pytest.mark.parametrize("num_tokens", (1, 13, 40))
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_in_one_call_are_dense(
    name: str, num_tokens: int, heads: tuple[int, int], packed: bool
) -> None:
    pattern, ids = WINDOWED[name], make_documents(num_tokens) if packed else None
    inputs = make_inputs(heads, num_tokens, dtype=torch.float64)
    actual = with_gradients(lambda *x: attend_windows(*x, pattern, 0.3, ids, Loop()), inputs)
    expected = with_gradients(lambda *x: BACKENDS["dense"](*x, pattern, 0.3, ids), inputs)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, atol=1e-9)


@pytest.mark.parametrize(
    "pattern", [S2, AttentionPattern(8), AttentionPattern(8, shifted_fraction=1.0)], ids=str
)
def test_a_shift_copies_nothing(pattern: AttentionPattern) -> None:
    # [B, N, H, D] in memory, as projections give it.
    inputs = [torch.randn(2, 21, 4, 8).transpose(1, 2) for _ in range(3)]
    kernel = Loop()
    attend_windows(*inputs, pattern, 0.3, None, kernel)
    assert kernel.calls
    for call in kernel.calls:
        for given, x in zip(call, inputs, strict=True):
            assert given.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


# --- PyTorch's own kernel -----------------------------------------------------------------------------------


def test_the_kernel_takes_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.nn.attention.varlen as module

    signature, called = inspect.signature(module.varlen_attn), []

    def instead(*args: object, **kwargs: object) -> Tensor:
        given = signature.bind(*args, **kwargs).arguments
        called.append(given)
        positional = [given[name] for name in list(signature.parameters)[:7]]
        return Loop()(*positional, given["scale"])  # type: ignore[arg-type]

    instead.__signature__ = signature  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "varlen_attn", instead)
    inputs = make_inputs((4, 2), 21, dtype=torch.float64)
    assert_close(varlen(*inputs, SF, 0.3, None), BACKENDS["dense"](*inputs, SF, 0.3, None), atol=1e-9)
    assert all(given["window_size"] == (-1, 0) and given["enable_gqa"] for given in called)


def test_it_is_missing_where_pytorch_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.nn.attention.varlen as module

    assert missing_varlen() == ""

    def older(query: Tensor, is_causal: bool = False) -> None: ...

    monkeypatch.setattr(module, "varlen_attn", older)
    assert "which PyTorch 2" in missing_varlen()
    with pytest.raises(
        ImportError, match=r"backend='varlen' needs varlen_attn with a scale .* backend='auto'"
    ):
        torch_kernel()


def test_what_it_cannot_do_is_said() -> None:
    x = torch.randn(2, 4, 8, 4)
    assert "varlen" not in available_backends(x, SF)
    with pytest.raises(ValueError, match=r"^backend='varlen' needs tensors on a CUDA device, got cpu"):
        attend(x, x, x, SF, backend="varlen")


@pytest.mark.gpu
def test_it_needs_heads_of_a_multiple_of_eight() -> None:
    x = torch.randn(2, 4, 8, 12, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="takes heads of a multiple of 8 up to 256, got 12"):
        attend(x, x, x, S2, backend="varlen")
    assert torch.equal(attend(x, x, x, S2), attend(x, x, x, S2, backend="sdpa"))


@pytest.mark.gpu
def test_auto_takes_it_where_sdpa_would_copy_or_pad() -> None:
    x = torch.randn(2, 4, 64, 16, device="cuda", dtype=torch.bfloat16)
    assert "varlen" in available_backends(x, SF) and "varlen" not in available_backends(x, RANDOM)
    for pattern, backend in ((S2, "varlen"), (SF, "sdpa"), (S2_WRAPPED, "sdpa")):
        assert torch.equal(attend(x, x, x, pattern), attend(x, x, x, pattern, backend=backend))
    ids = make_documents(64).cuda()
    packed = attend(x, x, x, SF, document_ids=ids)
    assert torch.equal(packed, attend(x, x, x, SF, document_ids=ids, backend="varlen"))
