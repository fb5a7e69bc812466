"""The compiled operator behind `column_sums_cpu`: built once a machine, by the first prompt that pays for it.

Without a compiler, or where compiling or loading fails, there is no operator, a debug message says why, and
the pass in blocks of `scored_attention` serves. Processes may build at once: each writes a file of its own
and renames it.
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
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("column_sums_cpu.cpp")
LIBRARY = "column_sums.so"

# What PyTorch itself finds this processor to have, and the flags of its own kernels for it.
INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
}
FLAGS = ("-O3", "-std=c++20", "-fPIC", "-shared", "-fopenmp", "-DAT_PER_OPERATOR_HEADERS")
LONGEST_SECONDS = 300

logger = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()


def column_sums_operator() -> Callable[..., Tensor] | None:
    """The operator `sinklora::column_sums`; None where there is none.

    It is compiled into `$SINKLORA_CACHE/kernels` (default `~/.cache/sinklora/kernels`) if it is not there.
    Never raises: what went wrong is logged at debug level, once.
    """
    with _one_at_a_time:
        return _operator()


@cache
def _operator() -> Callable[..., Tensor] | None:
    """The operator, loaded or built once in a process."""
    capability = torch.backends.cpu.get_cpu_capability()
    if sys.platform != "linux" or capability not in INSTRUCTIONS:
        logger.debug("column sums are not compiled for %s with %s instructions", sys.platform, capability)
        return None
    library = library_path()
    try:
        if not library.exists():
            compile_library(library)
        try:
            torch.ops.load_library(library)
        except OSError:  # damaged, or built by another system that shares this folder
            compile_library(library)
            torch.ops.load_library(library)
    except (OSError, ImportError, RuntimeError, subprocess.SubprocessError) as error:
        # A compiler's message is in the error's output.
        logger.debug("column sums are not compiled: %s\n%s", error, getattr(error, "stderr", None) or "")
        return None
    return torch.ops.sinklora.column_sums.default


def library_path() -> Path:
    """Where the library of this source, version of PyTorch and kind of processor lies."""
    root = Path(os.environ.get("SINKLORA_CACHE", "~/.cache/sinklora")).expanduser()
    return root / "kernels" / _build_hash() / LIBRARY


@cache
def _build_hash() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    parts = [torch.__version__, platform.machine(), capability, *FLAGS, *INSTRUCTIONS.get(capability, ())]
    return hashlib.sha256("\n".join([SOURCE.read_text(encoding="utf-8"), *parts]).encode()).hexdigest()[:16]


def compile_library(library: Path) -> None:
    """Compile the operator into a file; it appears whole or not at all.

    Raises FileNotFoundError without a compiler ($CXX, else c++ or g++), subprocess.CalledProcessError or
    TimeoutExpired where compiling fails, OSError where the folder cannot be written.
    """
    command = [*_compiler(), *_arguments()]
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="building-") as folder:
        built = Path(folder) / LIBRARY
        subprocess.run(
            [*command, "-o", str(built)], check=True, capture_output=True, text=True, timeout=LONGEST_SECONDS
        )
        built.replace(library)


def _compiler() -> list[str]:
    """The command of the C++ compiler, with what $CXX adds to it."""
    for candidate in [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++"]:
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise FileNotFoundError("no C++ compiler: install g++, or name one in CXX")


def _arguments() -> list[str]:
    """What the compiler is told, but for the name of the result."""
    from torch.utils.cpp_extension import include_paths, library_paths  # takes a while to import

    capability = torch.backends.cpu.get_cpu_capability()
    defined = [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    headers = [f"-I{path}" for path in include_paths()]
    libraries = [f"-L{path}" for path in library_paths()]
    flags = [*FLAGS, *INSTRUCTIONS[capability], *defined]
    return [*flags, *headers, str(SOURCE), *libraries, "-ltorch_cpu", "-lc10"]
