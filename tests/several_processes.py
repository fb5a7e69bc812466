"""Runs a script in several processes that form one group of torch.distributed, on the CPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TESTS = Path(__file__).resolve().parent


def run_together(script: Path, ranks: int, folder: Path, *, fails: bool = False) -> str:
    """Run `script FOLDER` as ranks 0 to `ranks` - 1; returns what those said that failed.

    AssertionError with that unless some are meant to fail.
    """
    places = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    shared = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    command, pipe = [sys.executable, str(script), str(folder)], subprocess.PIPE
    processes: list[subprocess.Popen[Any]] = [
        subprocess.Popen(
            command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=pipe, text=True
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    faults = [text for process, text in zip(processes, said, strict=True) if process.returncode]
    text = "\n".join(text[-3000:] for text in faults)
    assert bool(faults) == fails, text
    return text


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def join_group(folder: Path) -> dict[int, Any]:
    """Make this process one of the group; and the groups of its first 1, 2, ... processes."""
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    return {size: dist.new_group(list(range(size))) for size in range(1, ranks + 1)}
