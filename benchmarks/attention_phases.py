"""Measures attention's cases in a fresh process, whose last line is JSON: the C library's settings for time
would spoil memory, and it reads them only when a process starts.

    python benchmarks/attention_phases.py time '{"lengths": [2048], "heads": 8, ...}'
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from attention_cases import AttentionOptions, Case, make_cases, make_inputs, run_once
from script_options import settings_of
from torch import Tensor
from tqdm import tqdm

from sinklora.evaluate.memory import KEEP_MEMORY, peak_of_a_fork
from sinklora.evaluate.timing import Seconds, in_rounds, timed
from sinklora.records.checks import read_fields


def measure_time(options: AttentionOptions) -> list[dict[str, Any]]:
    """Seconds (wall, processor) of every round, and on CUDA peak bytes, of every case at every length."""
    torch.set_num_threads(options.threads)
    measurements: list[dict[str, Any]] = []
    for length in options.lengths:
        cases, inputs = make_cases(length, options), make_inputs(length, options)
        calls = {number: functools.partial(_timed, case, inputs) for number, case in enumerate(cases)}
        what = f"time at {length}"
        measured = in_rounds(calls, rounds=options.repeats, warmup=options.warmup, what=what)
        measurements += [
            {
                "wall": [seconds.wall for seconds, _ in own],
                "processor": [seconds.processor for seconds, _ in own],
                "peak": own[-1][1],
            }
            for own in measured.values()
        ]
    return measurements


def _timed(case: Case, inputs: list[Tensor]) -> tuple[Seconds, int | None]:
    held = 0
    if inputs[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    seconds = timed(functools.partial(run_once, case, inputs), inputs[0].device)
    return seconds, torch.cuda.max_memory_allocated() - held if inputs[0].is_cuda else None


def measure_memory(options: AttentionOptions) -> list[dict[str, Any]]:
    """Peak resident memory above inputs, in bytes, of every case and length; each in a forked process."""
    peaks = []
    jobs = [(length, i) for length in options.lengths for i in range(len(make_cases(length, options)))]
    for job in tqdm(jobs, desc="memory", disable=None):
        peaks.append({"peak": peak_of_a_fork(functools.partial(_prepare, *job, options))})
    return peaks


def _prepare(length: int, index: int, options: AttentionOptions) -> Callable[[], None]:
    torch.set_num_threads(options.threads)
    case = make_cases(length, options)[index]
    for first_use in make_cases(8, options)[:2]:  # libraries and threads come up before memory is counted
        run_once(first_use, make_inputs(8, options))
    return functools.partial(run_once, case, make_inputs(length, options))


PHASES: dict[str, Callable[[AttentionOptions], list[dict[str, Any]]]] = {
    "time": measure_time,
    "memory": measure_memory,
}


def in_own_process(
    phase: str, options: AttentionOptions, environment: dict[str, str]
) -> list[dict[str, Any]]:
    """A phase's results from a fresh process, with these settings of the C library and no others."""
    others = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY}
    command = [sys.executable, __file__, phase, json.dumps(settings_of(options))]
    done = subprocess.run(command, check=True, env=others | environment, stdout=subprocess.PIPE, text=True)
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def main(phase: str, settings: str) -> None:
    """Measure a phase for the fields of AttentionOptions, and print its results."""
    print(json.dumps(PHASES[phase](read_fields(AttentionOptions, json.loads(settings)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
