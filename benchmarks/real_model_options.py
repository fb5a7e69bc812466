"""Options of the benchmark of a real model: which caches and patterns are asked, and for what."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated

import typer
from script_options import (
    CORES,
    DEVICE,
    OUT,
    RUNS,
    Device,
    KeptShare,
    OutFolder,
    Repeats,
    RunsFolder,
    Threads,
)

from sinklora.attention.patterns import PATTERNS
from sinklora.cache.policies import POLICIES
from sinklora.records.checks import Count, Distinct, check_counts, check_fields, one_of
from sinklora.reproduction.names import CACHES as TITLES

DYNAMIC, STATIC, LOCAL = "DynamicCache", "StaticCache (budget)", "Local"
POLICY_TITLES = {name: "Full" if name == "full" else TITLES.get(name, name) for name in POLICIES}
POLICIES_BY_TITLE = {title: name for name, title in POLICY_TITLES.items()}
BOUNDED = tuple(title for name, title in POLICY_TITLES.items() if POLICIES[name].bounded)
CACHES = {"dynamic": DYNAMIC, "static": STATIC, **POLICY_TITLES}  # by what the command line calls them
PAPERS = ("dynamic", "static", "full", "h2o", "local", "streaming")  # what the paper compares, and theirs
TABLES = ("caches", "training", "compiled")

# Other defaults, with --quick: a run of seconds, to see that all works.
QUICK = {"prompts": "48", "batches": "1", "contexts": "64", "steps": 3, "repeats": 1}


def use_quick_defaults(context: typer.Context, quick: bool) -> bool:
    """Give the options that follow other defaults."""
    if quick:
        context.default_map = QUICK
    return quick


@dataclass(frozen=True)
class RealModelOptions:
    """What is measured, and where its tables go."""

    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            is_eager=True,
            callback=use_quick_defaults,
            help="other defaults: tiny sizes, one round",
        ),
    ] = False
    model: Annotated[str, typer.Option(help="a model's name, or its folder")] = "smollm2-135m"
    prompts: Annotated[Distinct[Count], typer.Option(help="tokens, separated by commas")] = (2048, 7936)
    batches: Annotated[Distinct[Count], typer.Option(help="rows, separated by commas")] = (1, 8)
    most: Annotated[
        Count | None,
        typer.Option(help="tokens of a prompt, all rows together: larger ones are left out"),
    ] = None
    contexts: Annotated[Distinct[Count], typer.Option(help="tokens of training, separated by commas")] = (
        16384,
    )
    patterns: Annotated[
        Distinct[Annotated[str, one_of(PATTERNS)]],
        typer.Option(help=f"of training, beside sf, separated by commas: {', '.join(PATTERNS)}"),
    ] = ("full",)
    budget: Annotated[KeptShare, typer.Option(help="share of the prompt that bounded caches keep")] = 0.2
    caches: Annotated[
        Distinct[Annotated[str, one_of(CACHES)]],
        typer.Option(help=f"beside dynamic and local, separated by commas: {', '.join(CACHES)}"),
    ] = PAPERS
    steps: Annotated[Count, typer.Option(help="tokens decoded")] = 64
    repeats: Repeats = 3
    dtype: Annotated[
        str,
        one_of(("bfloat16", "float32", "fastest")),
        typer.Option(help="of the weights: bfloat16, float32 or the faster of them here"),
    ] = "fastest"
    device: Device = DEVICE
    threads: Threads = CORES
    only: Annotated[
        Distinct[Annotated[str, one_of(TABLES)]],
        typer.Option(help=f"which tables, separated by commas: {', '.join(TABLES)}"),
    ] = ("caches", "training")
    compile: Annotated[bool, typer.Option("--compile", help="the table `compiled` as well")] = False
    runs: RunsFolder = RUNS
    out: OutFolder = OUT

    def __post_init__(self) -> None:
        check_fields(self)
        if self.most is not None:  # a prompt has to be left
            check_counts(min(self.batches) * min(self.prompts), most=self.most)

    @property
    def settings(self) -> list[tuple[int, int]]:
        """Rows and tokens of the prompts that are read."""
        pairs = product(self.batches, self.prompts)
        return [(rows, tokens) for rows, tokens in pairs if self.most is None or rows * tokens <= self.most]

    @property
    def compared_caches(self) -> list[str]:
        """Titles of the caches, those that all are compared with among them."""
        return [title for name, title in CACHES.items() if name in {"dynamic", "local", *self.caches}]

    @property
    def compared_patterns(self) -> list[str]:
        """The patterns, the one that all are compared with first."""
        return list(dict.fromkeys(["sf", *self.patterns]))

    @property
    def tables(self) -> list[str]:
        """The tables in the order that they were asked for."""
        return list(dict.fromkeys([*self.only, *(["compiled"] if self.compile else [])]))
