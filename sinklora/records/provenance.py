"""Where a number comes from: commit, versions, hardware, time. Never a host name or a path of the machine."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = ("torch", "transformers", "peft", "numpy", "sinklora")


def current_provenance() -> dict[str, Any]:
    """A JSON-ready record of the code, the versions and the machine, taken now.

    `commit` and `dirty` are None where the package does not lie in a git checkout; `dirty` tells whether
    there are `changed_files` (changed, new or gone, by their paths in the checkout), without those in
    `results` and `docs` and `README.md`, which are written meanwhile. `memory_gib` in GiB, `time` in UTC.
    """
    return {
        **_git(Path(__file__)),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": _hardware(),
        "threads": torch.get_num_threads(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def unchanged_commit(source: Path = Path(__file__)) -> str | None:
    """The commit that the checkout of `source` is exactly; None where files changed since (as `dirty` in
    `current_provenance`) or where it does not lie in one.
    """
    found = _git(source)
    commit: str | None = None if found["dirty"] else found["commit"]
    return commit


def _git(source: Path) -> dict[str, Any]:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    try:
        # A checkout around an installed package is not its source: the file itself must be tracked.
        git("ls-files", "--error-unmatch", source.name)
        # The texts outside of `results` quote its numbers.
        written = [f":(top,exclude){name}" for name in ("results", "docs", "README.md")]
        # One entry a file, ended by a zero: two letters for its state, a blank, its path.
        entries = git("status", "--porcelain", "-z", "--no-renames", "--", ":/", *written).split("\0")
        changed = sorted(entry[3:] for entry in entries if entry)
        commit = git("rev-parse", "HEAD").strip()
        return {"commit": commit, "dirty": bool(changed), "changed_files": changed}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None, "changed_files": []}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    gpus = range(torch.cuda.device_count())
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
        "cuda": torch.version.cuda,
    }


def processor_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
