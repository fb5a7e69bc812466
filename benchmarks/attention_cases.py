"""What the benchmark of attention compares: the baseline, LongLoRA's operator, every pattern and backend."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
import typer
from pydantic import Field
from script_options import CORES, DEVICE, DTYPE, HAS_CUDA, OUT, Device, Dtype, OutFolder, Repeats, Threads
from torch import Tensor

from sinklora.attention.dispatch import attend, available_backends
from sinklora.attention.pattern import triangle
from sinklora.attention.patterns import PATTERNS, S2_WRAPPED, SF
from sinklora.records.checks import Count, Distinct, NotNegative, Positive, check_fields

GIB = 2**30

Lengths = Distinct[Annotated[int, Field(ge=8, multiple_of=8)]]


@dataclass(frozen=True)
class AttentionOptions:
    """What is measured, and where its table goes."""

    lengths: Annotated[Lengths, typer.Option(help="tokens: multiples of 8, separated by commas")] = (
        (2048, 4096, 8192, 16384, 32768) if HAS_CUDA else (2048, 4096, 8192)
    )
    out: OutFolder = OUT
    device: Device = DEVICE
    dtype: Dtype = DTYPE
    batch: Annotated[Count, typer.Option(help="rows")] = 1
    heads: Annotated[Count, typer.Option(help="of queries")] = 8
    kv_heads: Annotated[Count, typer.Option(help="of keys and values")] = 8
    head_size: Annotated[Count, typer.Option(help="numbers in a head's vector")] = 64
    threads: Threads = CORES
    repeats: Repeats = 5
    warmup: Annotated[NotNegative, typer.Option(help="rounds before those that are measured")] = 1
    limit_gib: Annotated[Positive, typer.Option(help="leave out cases whose scores need more")] = 4.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Case:
    """One row of the table. `scores`: how many attention scores it holds at once; none for fused kernels."""

    name: str
    backend: str
    run: Callable[[Tensor, Tensor, Tensor], Tensor]
    ideal: Callable[[], float]
    scores: int = 0


def full_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The baseline of all ratios."""
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)


def eager_s2(query: Tensor, key: Tensor, value: Tensor, group: int) -> Tensor:
    """S2-Attn as LongLoRA's release computes it (arXiv 2309.12307, Algorithm 1), with all scores in memory.

    Grouped keys are repeated, half of the heads rolled by half a group, groups taken as a batch, softmax done
    in float32. `group` must divide the number of tokens.
    """
    batch, heads, num_tokens, size = query.shape

    def to_groups(x: Tensor) -> Tensor:
        x = x.repeat_interleave(heads // x.shape[1], 1)
        x = torch.cat([x[:, : heads // 2], x[:, heads // 2 :].roll(-(group // 2), 2)], 1)
        return x.transpose(1, 2).reshape(-1, group, heads, size).transpose(1, 2)

    query, key, value = to_groups(query), to_groups(key), to_groups(value)
    lowest = torch.finfo(query.dtype).min
    mask = torch.full((group, group), lowest, dtype=query.dtype, device=query.device).triu(1)
    scores = query @ key.transpose(2, 3) / size**0.5 + mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    output = (weights @ value).transpose(1, 2).reshape(batch, num_tokens, heads, size).transpose(1, 2)
    return torch.cat([output[:, : heads // 2], output[:, heads // 2 :].roll(group // 2, 2)], 1)


def make_cases(length: int, options: AttentionOptions) -> list[Case]:
    """The baseline, LongLoRA's operator, packed documents, and every pattern on every backend here."""
    heads, group = options.heads, S2_WRAPPED.group_tokens(length)
    rows = options.batch * heads * length

    def packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ids = (torch.arange(length, device=options.device) * 2 // length).expand(options.batch, length)
        return attend(query, key, value, SF, document_ids=ids, backend="sdpa")

    def packed_ideal() -> float:
        half = SF.density(heads, length // 2)
        return half * 2 * triangle(length // 2) / triangle(length)

    cases = [
        Case("full causal SDPA", "torch", full_sdpa, lambda: 1.0),
        Case(
            "s2 as LongLoRA released it",
            "torch",
            functools.partial(eager_s2, group=group),
            lambda: S2_WRAPPED.density(heads, length),
            rows * group,
        ),
        Case("sf, two documents", "sdpa", packed, packed_ideal),
    ]
    example = torch.empty(0, dtype=getattr(torch, options.dtype), device=options.device)
    for name, pattern in PATTERNS.items():
        for backend in available_backends(example, pattern):
            run = functools.partial(attend, pattern=pattern, backend=backend)
            scores = rows * length if backend in ("dense", "masked") else 0
            cases.append(Case(name, backend, run, functools.partial(pattern.density, heads, length), scores))
    # Scores, mask, weights and their gradients live together.
    return [case for case in cases if case.scores * 4 * 6 <= options.limit_gib * GIB]


def make_inputs(length: int, options: AttentionOptions) -> list[Tensor]:
    """Query, key, value and upstream gradient, in memory as projections leave them: [B, N, H, D]."""
    torch.manual_seed(0)
    shapes = [(options.batch, length, h, options.head_size) for h in (options.heads, *[options.kv_heads] * 2)]
    kind = {"dtype": getattr(torch, options.dtype), "device": options.device}
    tensors = [torch.randn(shape, **kind).transpose(1, 2) for shape in (*shapes, shapes[0])]
    return [*(x.requires_grad_() for x in tensors[:3]), tensors[3]]


def run_once(case: Case, inputs: list[Tensor]) -> None:
    """Forward and backward."""
    *tensors, upstream = inputs
    torch.autograd.grad(case.run(*tensors), tensors, upstream)
