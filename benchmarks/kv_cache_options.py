"""Options of the benchmark of bounded caches, and the model that its tables ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from pydantic import Field
from script_options import (
    CORES,
    DEVICE,
    DTYPE,
    HAS_CUDA,
    OUT,
    Device,
    Dtype,
    KeptShare,
    OutFolder,
    Repeats,
    Threads,
)

from sinklora.cache.policies import POLICIES
from sinklora.evaluate.generation_cost import cache_bound_model
from sinklora.hf.model_shapes import SHAPES, random_model
from sinklora.records.checks import Count, Distinct, check_fields, one_of

KINDS = [name for name, policy in POLICIES.items() if policy.bounded]
TABLES = ("memory", "operators", "generation")  # memory first, in small processes
CACHE_BOUND = "cache-bound"

Prompts = Distinct[Annotated[int, Field(ge=2)]]
Shape = Annotated[str, one_of((CACHE_BOUND, *SHAPES))]


@dataclass(frozen=True)
class CacheOptions:
    """What is measured, and where its tables go."""

    prompts: Annotated[Prompts, typer.Option(help="tokens, separated by commas")] = (
        (2048, 8192, 32768) if HAS_CUDA else (2048, 8192)
    )
    budgets: Annotated[
        Distinct[KeptShare], typer.Option(help="shares of the prompt that are kept, separated by commas")
    ] = (0.05, 0.1, 0.2, 0.5, 1.0)
    out: OutFolder = OUT
    label: Annotated[str, typer.Option(help="ends the files' names, beside those of other settings")] = ""
    device: Device = DEVICE
    dtype: Dtype = DTYPE
    batch: Annotated[Count, typer.Option(help="rows")] = 4
    shape: Annotated[
        Shape,
        typer.Option(help=f"of the model: a small one whose decoding its cache bounds, {', '.join(SHAPES)}"),
    ] = CACHE_BOUND
    heads: Annotated[Count, typer.Option(help="of the layer whose operators are measured")] = 8
    head_size: Annotated[Count, typer.Option(help="numbers in a vector of such a head")] = 64
    memory_prompt: Annotated[Count, typer.Option(help="tokens of the table of memory")] = 16384
    threads: Threads = CORES
    steps: Annotated[Count, typer.Option(help="tokens decoded")] = 32
    repeats: Repeats = 3
    only: Annotated[
        Distinct[Annotated[str, one_of(TABLES)]],
        typer.Option(help="which tables, separated by commas"),
    ] = TABLES

    def __post_init__(self) -> None:
        check_fields(self)


def random_cache_model(options: CacheOptions) -> Any:
    """The cache-bound model, or one of a named shape, with random weights."""
    dtype = getattr(torch, options.dtype)
    if options.shape == CACHE_BOUND:
        return cache_bound_model().to(options.device, dtype)
    longest = max(*options.prompts, options.memory_prompt) + options.steps
    return random_model(options.shape, longest, dtype=dtype, device=options.device).eval()
