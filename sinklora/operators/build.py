"""Operators in C++, compiled once a machine by the first computation that pays for it.

Without a compiler, or where compiling or loading fails, there is no operator, a debug message says why, and
what computes the same without it serves. Processes may build at once: each writes a file of its own and
renames it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sinklora.user_cache import cache_folder

# What PyTorch itself finds this processor to have, and the flags of its own kernels for it.
INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
}
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-DAT_PER_OPERATOR_HEADERS")
LONGEST_SECONDS = 300

logger = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class CompiledOperator:
    """The operator `sinklora::name`, which a C++ file registers for the CPU, alone or with its like."""

    name: str
    source: Path

    def find(self) -> Callable[..., Any] | None:
        """The operator; None where there is none.

        It is compiled into `$SINKLORA_CACHE/kernels` (default `~/.cache/sinklora/kernels`) if it is not
        there. Never raises: what went wrong is logged at debug level, once.
        """
        with _one_at_a_time:
            return _loaded(self)

    def library_path(self) -> Path:
        """Where the library of this source, version of PyTorch and kind of processor lies."""
        return cache_folder("kernels") / _build_hash(self.source) / f"{self.source.stem}.so"

    def compile(self, library: Path) -> None:
        """Compile the operator into a file; it appears whole or not at all.

        Raises FileNotFoundError without a compiler ($CXX, else c++ or g++), subprocess.CalledProcessError or
        TimeoutExpired where compiling fails, OSError where the folder cannot be written.
        """
        command = [*_compiler(), *_arguments(self.source)]
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as folder:
            built = Path(folder) / library.name
            subprocess.run(
                [*command, "-o", str(built)],
                check=True,
                capture_output=True,
                text=True,
                timeout=LONGEST_SECONDS,
            )
            built.replace(library)


@cache
def _loaded(operator: CompiledOperator) -> Callable[..., Any] | None:
    """The operator, loaded or built once in a process."""
    name, capability = operator.name, torch.backends.cpu.get_cpu_capability()
    if sys.platform != "linux" or capability not in INSTRUCTIONS:
        logger.debug("%s is not compiled for %s with %s instructions", name, sys.platform, capability)
        return None
    try:
        library = operator.library_path()
        if not library.exists():
            operator.compile(library)
        try:
            torch.ops.load_library(library)
        except OSError:  # damaged, or built by another system that shares this folder
            operator.compile(library)
            torch.ops.load_library(library)
    except (OSError, ImportError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        # A compiler's message is in the error's output.
        logger.debug("%s is not compiled: %s\n%s", name, error, getattr(error, "stderr", None) or "")
        return None
    compiled: Callable[..., Any] = getattr(torch.ops.sinklora, name).default
    return compiled


@cache
def _build_hash(source: Path) -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    parts = [torch.__version__, platform.machine(), capability, *FLAGS, *INSTRUCTIONS.get(capability, ())]
    return hashlib.sha256("\n".join([source.read_text(encoding="utf-8"), *parts]).encode()).hexdigest()[:16]


def _compiler() -> list[str]:
    """The command of the C++ compiler, with what $CXX adds to it."""
    for candidate in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++"]:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise FileNotFoundError("no C++ compiler: install g++, or name one in CXX")


def _arguments(source: Path) -> list[str]:
    """What the compiler is told, but for the name of the result."""
    from torch.utils.cpp_extension import include_paths, library_paths  # takes a while to import

    capability = torch.backends.cpu.get_cpu_capability()
    defined = [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    headers = [f"-I{path}" for path in include_paths()]
    libraries = [f"-L{path}" for path in library_paths()]
    flags = [*FLAGS, *INSTRUCTIONS[capability], *defined]
    return [*flags, *headers, str(source), *libraries, "-ltorch_cpu", "-lc10"]
