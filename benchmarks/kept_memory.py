"""Time is measured with memory kept that was freed; the C library is told so only when a process starts."""

import os
import sys

from sinklora.evaluate.memory import KEEP_MEMORY


def start_anew_unless_kept() -> None:
    """Start this process's program again, with the same arguments and these settings, where it has others."""
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **KEEP_MEMORY})
