"""Bytes sent for attention over rows that several processes hold together, as a table of Markdown.

    python benchmarks/sequence_traffic.py --tokens 32768 --ranks 2,4,8

Nothing is measured: SF-Attn's and full attention's bytes are counted from the plan of their exchange, ring
attention's and Ulysses' follow from their formulas. For one layer's forward pass in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import pandas as pd
import typer
from pydantic import Field
from script_options import script

from sinklora.attention.patterns import PATTERNS
from sinklora.attention.sequence_parallel.traffic import (
    AttentionShape,
    Traffic,
    planned_traffic,
    ring_traffic,
    ulysses_traffic,
)
from sinklora.records.checks import Count, Distinct, check_fields, check_value
from sinklora.records.tables import markdown

SHAPES = {"Llama-2-7B": AttentionShape(32, 32, 128), "Llama-2-70B": AttentionShape(64, 8, 128)}
NAMES = ("sf", "sf_shifted", "full")


@dataclass(frozen=True)
class TrafficOptions:
    """Which rows, held by how many processes."""

    tokens: Annotated[Count, typer.Option(help="of a row, over all processes")] = 32_768
    ranks: Annotated[Distinct[Count], typer.Option(help="processes to a row, separated by commas")] = (
        2,
        4,
        8,
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_value("tokens", self.tokens, Annotated[int, Field(multiple_of=math.lcm(*self.ranks))])


def rows(tokens: int, ranks: Sequence[int]) -> Iterator[dict[str, str]]:
    """A row for each shape and number of processes: KiB sent per token, the mean of ranks and the most."""
    for name, shape in SHAPES.items():
        for count in ranks:
            traffic = {key: planned_traffic(shape, PATTERNS[key], tokens, count) for key in NAMES}
            traffic |= {"ring": ring_traffic(shape, count), "ulysses": ulysses_traffic(shape, count)}
            yield {"model": name, "ranks": str(count)} | {key: _kib(sent) for key, sent in traffic.items()}


def traffic_table(tokens: int, ranks: Sequence[int]) -> str:
    """The table in Markdown."""
    return markdown(pd.DataFrame(rows(tokens, ranks)))


def _kib(sent: Traffic) -> str:
    mean, most = (f"{x / 1024:.2f}" if x < 1024 else f"{x / 1024:.1f}" for x in (sent.mean, sent.most))
    return mean if mean == most else f"{mean} ({most})"


def main(options: TrafficOptions) -> None:
    """Print the table."""
    print(traffic_table(options.tokens, options.ranks))


application = script(main, TrafficOptions)

if __name__ == "__main__":
    application()
