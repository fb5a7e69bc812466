"""Time and peak memory, forward and backward, of every pattern and backend as ratios to full causal SDPA.

    python benchmarks/attention.py --lengths 2048 4096 8192 --out out/benchmarks

`ideal` is the pattern's density: its visible pairs over all causal pairs. `time` is a case's wall time over
the baseline's in the same round, in which every case runs once, so that a busy machine slows both down: the
median of all rounds; `cpu` is the same for processor time. `memory` compares peaks above inputs: on the CPU
of resident memory, each case in its own process. Cases with too many scores are left out (`--limit-gb`).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from sinklora.attention.dispatch import attend, available_backends
from sinklora.attention.pattern import triangle
from sinklora.attention.patterns import PATTERNS, S2_WRAPPED, SF
from sinklora.evaluate.memory import KEEP_MEMORY, peak_of_a_fork
from sinklora.evaluate.timing import Seconds, in_rounds, median_ratio, timed
from sinklora.records.files import atomic_write, write_json
from sinklora.records.provenance import current_provenance

GIB = 2**30


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


def make_cases(length: int, options: argparse.Namespace) -> list[Case]:
    """The baseline, LongLoRA's operator, packed documents, and every pattern on every backend here."""
    heads, group = options.heads, S2_WRAPPED.group_tokens(length)
    rows = options.batch * heads * length

    def packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        ids = (torch.arange(length, device=options.device) * 2 // length).expand(options.batch, length)
        return attend(query, key, value, SF, document_ids=ids)

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
    return [case for case in cases if case.scores * 4 * 6 <= options.limit_gb * GIB]


def make_inputs(length: int, options: argparse.Namespace) -> list[Tensor]:
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


def measure_time(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds (wall, processor) of every round, and on CUDA peak bytes, of every case at every length."""
    torch.set_num_threads(options.threads)
    found: list[dict[str, Any]] = []
    for length in options.lengths:
        cases, inputs = make_cases(length, options), make_inputs(length, options)
        calls = {number: functools.partial(_timed, case, inputs) for number, case in enumerate(cases)}
        what = f"time at {length}"
        measured = in_rounds(calls, rounds=options.repeats, warmup=options.warmup, what=what)
        found += [
            {
                "wall": [seconds.wall for seconds, _ in own],
                "processor": [seconds.processor for seconds, _ in own],
                "peak": own[-1][1],
            }
            for own in measured.values()
        ]
    return found


def _timed(case: Case, inputs: list[Tensor]) -> tuple[Seconds, int | None]:
    held = 0
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    seconds = timed(functools.partial(run_once, case, inputs), inputs[0].device)
    return seconds, torch.cuda.max_memory_allocated() - held if inputs[0].is_cuda else None


def measure_memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak resident memory above inputs, in bytes, of every case and length; each in a forked process."""
    found = []
    jobs = [(length, i) for length in options.lengths for i in range(len(make_cases(length, options)))]
    for job in tqdm(jobs, desc="memory", disable=None):
        found.append({"peak": peak_of_a_fork(functools.partial(_prepare, *job, options))})
    return found


def _prepare(length: int, index: int, options: argparse.Namespace) -> Callable[[], None]:
    torch.set_num_threads(options.threads)
    case = make_cases(length, options)[index]
    for first_use in make_cases(8, options)[:2]:  # libraries and threads come up before memory is counted
        run_once(first_use, make_inputs(8, options))
    return functools.partial(run_once, case, make_inputs(length, options))


PHASES: dict[str, Callable[[argparse.Namespace], list[dict[str, Any]]]] = {
    "time": measure_time,
    "memory": measure_memory,
}


def in_own_process(phase: str, arguments: list[str], extra: dict[str, str]) -> list[dict[str, Any]]:
    """A phase's results from a fresh Python process: glibc reads its settings only when a process starts."""
    environment = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [sys.executable, __file__, *arguments, "--phase", phase, "--results", str(results)]
        subprocess.run(command, check=True, env=environment | extra)
        return json.loads(results.read_text())


def make_table(
    options: argparse.Namespace, times: list[dict[str, Any]], peaks: list[dict[str, Any]]
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


def as_markdown(table: pd.DataFrame) -> str:
    """The table, ratios with three decimals."""
    lines = [
        [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.to_numpy()
    ]
    lines = [list(table.columns), ["---"] * len(table.columns), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    has_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    lengths = [2048, 4096, 8192, *([16384, 32768] if has_cuda else [])]
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, help="tokens; multiples of 8")
    parser.add_argument(
        "--out", type=Path, default=Path("out/benchmarks"), help="folder of the csv and md files"
    )
    parser.add_argument("--device", default="cuda" if has_cuda else "cpu")
    parser.add_argument("--dtype", default="bfloat16" if has_cuda else "float32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--limit-gb", type=float, default=4.0, help="leave out cases whose scores need more")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if any(length <= 0 or length % 8 for length in options.lengths):
        parser.error(f"--lengths must be positive multiples of 8, got {options.lengths}")
    return options


def main(arguments: list[str]) -> None:
    """Run both phases, write and print the table."""
    options = parse(arguments)
    if options.phase:
        write_json(options.results, PHASES[options.phase](options))
        return
    times = in_own_process("time", arguments, KEEP_MEMORY)
    peaks = in_own_process("memory", arguments, {}) if options.device == "cpu" else times
    table = make_table(options, times, peaks)
    what = (
        f"Batch {options.batch}, {options.heads} heads, {options.kv_heads} key/value heads, head size "
        f"{options.head_size}, {options.dtype}, {options.device}, {options.threads} threads, windows of a "
        f"quarter of the row. Ratios to the first row of a length; medians of {options.repeats} rounds."
    )
    text = f"{as_markdown(table)}\n\n{what}\n"
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out / "attention.csv", table.to_csv(index=False))
    atomic_write(options.out / "attention.md", text)
    settings = {name: str(value) for name, value in vars(options).items()}
    write_json(options.out / "attention.json", {"parameters": settings, **current_provenance()})
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
