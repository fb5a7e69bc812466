"""Measures the cases of one environment, started with that environment's Python; the last line is JSON.

    python -m peer_sides.process '{"setting": {...}, "cases": {NAME: {"side": ..., ...}}, "measures": [...]}'

The answer: for each case its facts, laps and peak, or why it failed; tensors lie in the setting's folder.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from peer_sides.subject import CannotRunError, Setting, Subject
from sinklora.evaluate.memory import peak_of_a_fork


def open_case(asked: dict[str, Any], setting: Setting) -> Subject:
    """The case, its model loaded."""
    side = importlib.import_module(f"peer_sides.{asked['side']}")
    subject: Subject = side.open_subject(asked, setting)
    return subject


def memory(asked: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """Bytes that a run adds to resident memory; none where it fails, which `computed` explains."""

    def prepare() -> Callable[[], object]:
        torch.set_num_threads(setting.threads)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its traceback is told once, by `computed`
        subject = open_case(asked, setting)
        subject.laps(warm=True)
        return subject.laps

    try:
        return {"peak": peak_of_a_fork(prepare)}
    except RuntimeError:
        return {}


def answers(name: str, subject: Subject, setting: Setting) -> dict[str, Any]:
    """What it computes: tensors are saved under its name."""
    tensors, facts = subject.answers()
    kept = {key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}
    save_file(kept, Path(setting.folder) / f"{name}.safetensors")
    return {"facts": facts}


def seconds(subject: Subject) -> dict[str, Any]:
    """Wall seconds of its parts, after a short run."""
    subject.laps(warm=True)
    return {"laps": subject.laps()}


def computed(name: str, asked: dict[str, Any], setting: Setting, measures: list[str]) -> dict[str, Any]:
    """What it answers and how long it takes, as far as asked for, or why it failed."""
    try:
        subject = open_case(asked, setting)
        measured = answers(name, subject, setting) if "answers" in measures else {}
        return measured | (seconds(subject) if "seconds" in measures else {})
    except CannotRunError as error:
        return {"failed": str(error)}
    except Exception as error:  # whatever a peer raises is a result
        first = (str(error).strip() or "no message").splitlines()[0]
        return {"failed": f"{type(error).__name__}: {first}"}


def measure_cases(
    setting: Setting, cases: dict[str, dict[str, Any]], measures: list[str]
) -> dict[str, dict[str, Any]]:
    """What every case answers and its seconds, or its peak alone: the C library is set for one of them."""
    torch.set_num_threads(setting.threads)
    if "memory" in measures:
        return {name: memory(asked, setting) for name, asked in cases.items()}
    return {name: computed(name, asked, setting, measures) for name, asked in cases.items()}


def versions(cases: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Versions, in this environment, of the packages that the cases are about."""
    installed = {}
    for package in sorted({name for asked in cases.values() for name in asked.get("packages", [])}):
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    return installed


def main(request: str) -> None:
    """Measure what the request asks for, and print the answer."""
    asked = json.loads(request)
    measured = measure_cases(Setting(**asked["setting"]), asked["cases"], asked["measures"])
    print(json.dumps({"cases": measured, "versions": versions(asked["cases"])}))


if __name__ == "__main__":
    main(sys.argv[1])
