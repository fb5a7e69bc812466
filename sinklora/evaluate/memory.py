"""Peak memory: of tensors, counted without a device, and of a process, as the system saw it."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import sys
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ALLOCATION = 512  # bytes: CUDA's allocator rounds each tensor up to a multiple

# glibc reads these when a process starts. For time it keeps what was freed, else page faults (a third of a
# training step on the CPU) are timed in place of the computation; for memory it gives it back. Either would
# be measured wrong with the other.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}

RETURNED_FROM = 65536  # bytes

RETURN_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(RETURNED_FROM),
    "MALLOC_TRIM_THRESHOLD_": str(RETURNED_FROM),
    "MALLOC_ARENA_MAX": "1",
}

MALLOC_OPTIONS = (-1, -3)  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>, while a process runs


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that live, within its `with` block: `now` and `peak`.

    Works on fake tensors, so that it tells what a computation would take without computing. What a kernel
    allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.add, output)
        return output

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage from now until it is freed, once."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = -(-storage.nbytes() // ALLOCATION) * ALLOCATION
        weakref.finalize(storage, self._free, size).atexit = False
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


def resident_bytes() -> int:
    """Memory of this process that is resident now."""
    return int(psutil.Process().memory_info().rss)


def resident_peak_bytes() -> int:
    """The most that was resident since the process started or since `reset_resident_peak`; Linux only.

    Raises RuntimeError elsewhere, as `reset_resident_peak` does: only Linux lets go of an earlier peak.
    """
    lines = _proc("status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def reset_resident_peak() -> None:
    """Let `resident_peak_bytes` start again from what is resident now; Linux only."""
    _proc("clear_refs").write_text("5", encoding="ascii")


def peak_of_a_fork(prepare: Callable[[], Callable[[], object]]) -> int:
    """Bytes that a call adds to resident memory at its peak, in a forked process of its own.

    `prepare`, called in the fork, makes the inputs and returns the call; libraries and threads should come up
    in it. Fork before this process has computed with several threads: OpenMP's do not survive it. Outside of
    Linux a higher peak of `prepare` hides some. Raises RuntimeError where the process ends before it answers.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send_peak, args=(prepare, sender))
    process.start()
    sender.close()
    try:
        peak = int(receiver.recv())
    except EOFError:
        process.join()
        raise RuntimeError(
            f"the process that measures memory ended with exit code {process.exitcode} (too little memory?)"
        ) from None
    process.join()
    return peak


def _send_peak(prepare: Callable[[], Callable[[], object]], sender: Connection) -> None:
    run = prepare()
    gc.collect()
    _return_freed_memory()
    if sys.platform == "linux":
        before = resident_bytes()
        reset_resident_peak()
        output = run()
        peak = resident_peak_bytes() - before
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        output = run()
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit
    sender.send(peak)
    del output


def _return_freed_memory() -> None:
    """Give back what was freed and go on so, in this process; what stayed would hide what a call adds."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "malloc_trim"):  # another C library than glibc
        return
    for option in MALLOC_OPTIONS:
        library.mallopt(option, RETURNED_FROM)
    library.malloc_trim(0)


def _proc(name: str) -> Path:
    if sys.platform != "linux":
        raise RuntimeError(
            f"sys.platform={sys.platform!r}: peaks of resident memory are told apart on Linux only; "
            "measure there or on a CUDA device, or estimate the peak without measuring"
        )
    return Path("/proc/self") / name
