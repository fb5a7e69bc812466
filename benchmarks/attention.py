"""Time and peak memory, forward and backward, of every pattern and backend as ratios to full causal SDPA.

    python benchmarks/attention.py --lengths 2048,4096,8192 --out out/benchmarks

`ideal` is the pattern's density: its visible pairs over all causal pairs. `time` is a case's wall time over
the baseline's in the same round, in which every case runs once, so that a busy machine slows both down: the
median of all rounds; `cpu` is the same for processor time. `memory` compares peaks above inputs: on the CPU
of resident memory, each case in its own process. Cases with too many scores are left out (`--limit-gib`).
"""

from __future__ import annotations

from statistics import median
from typing import Any

import pandas as pd
from attention_cases import AttentionOptions, full_sdpa, make_cases
from attention_phases import in_own_process
from script_options import script, settings_of
from table_files import write_table

from sinklora.evaluate.memory import KEEP_MEMORY
from sinklora.evaluate.timing import median_ratio
from sinklora.records.tables import Column, Number, Table, markdown


def make_table(
    options: AttentionOptions, times: list[dict[str, Any]], peaks: list[dict[str, Any]]
) -> pd.DataFrame:
    """One row per length and case, with ratios to the first case of the same length."""
    cases = [(length, case) for length in options.lengths for case in make_cases(length, options)]
    rows = []
    for (length, case), times_of, measured in zip(cases, times, peaks, strict=True):
        if case.run is full_sdpa:
            base, base_peak = times_of, measured["peak"]
        row = {"tokens": length, "pattern": case.name, "backend": case.backend, "ideal": case.ideal()}
        row["time"] = median_ratio(times_of["wall"], base["wall"])
        if options.device == "cpu":
            row["cpu"] = median_ratio(times_of["processor"], base["processor"])
        row |= {"memory": measured["peak"] / base_peak, "seconds": median(times_of["wall"])}
        rows.append(row | {"peak MiB": measured["peak"] / 2**20})
    return pd.DataFrame(rows)


def with_three_decimals(table: pd.DataFrame) -> Table:
    """How the table is shown."""
    floats = set(table.select_dtypes("float").columns)
    return Table(table, [Number(name, ".3f") if name in floats else Column(name) for name in table])


def main(options: AttentionOptions) -> None:
    """Run both phases, write and print the table."""
    times = in_own_process("time", options, KEEP_MEMORY)
    peaks = in_own_process("memory", options, {}) if options.device == "cpu" else times
    table = make_table(options, times, peaks)
    what = (
        f"Batch {options.batch}, {options.heads} heads, {options.kv_heads} key/value heads, head size "
        f"{options.head_size}, {options.dtype}, {options.device}, {options.threads} threads, windows of a "
        f"quarter of the row. Ratios to the first row of a length; medians of {options.repeats} rounds."
    )
    write_table(
        options.out,
        "attention",
        table,
        f"{markdown(with_three_decimals(table))}\n\n{what}\n",
        settings_of(options),
    )


application = script(main, AttentionOptions)

if __name__ == "__main__":
    application()
