"""Ending a process with all that it started."""

import os
import signal
import subprocess
from contextlib import suppress
from typing import Any

import psutil


def end_family(process: "subprocess.Popen[Any]") -> None:
    """Kill a process started in a session of its own, its group, and all descendants.

    The kernel of a notebook has a session of its own and would end by itself a second later, but what it
    started to measure something, in a process of its own on the same card, would not.
    """
    descendants = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        with suppress(psutil.NoSuchProcess):
            descendant.kill()
    process.wait()
