"""The kernel that executes a notebook: sockets of this user alone, and an end for all that it started."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync

from sinklora.reproduction.process_family import end_family

LONGEST_SOCKET = 80  # characters of a folder whose sockets' names the system still takes


class NotebookKernel(AsyncKernelManager):
    """Keeps its process and its clients after they have ended: how they did is told then."""

    process: "subprocess.Popen[Any] | None" = None
    clients: tuple[AsyncKernelClient, ...] = ()

    def client(self, **options: Any) -> AsyncKernelClient:  # type: ignore[override]
        """A client of the kernel, which runs by now."""
        self.process = getattr(self.provisioner, "process", None)
        made = super().client(**options)
        self.clients += (made,)
        return made

    @property
    def exit_status(self) -> int | None:
        """As `subprocess.Popen.returncode`: negative for a signal; None while it runs or before it began."""
        return None if self.process is None else self.process.poll()


@contextmanager
def private_kernel() -> Iterator[NotebookKernel]:
    """A kernel that is yet to start, over IPC: of TCP on a shared machine everybody can listen to the ports.

    Its sockets and its key lie in a folder that only this user may enter. At the end it is shut down, or
    killed with all that it started where an error or a signal ends it.
    """
    folder = _short_folder()
    kernel = NotebookKernel(kernel_name="python3", connection_file=str(folder / "kernel.json"))
    if sys.platform != "win32":  # which has no such sockets
        kernel.transport = "ipc"
    try:
        yield kernel
        run_sync(kernel.shutdown_kernel)()
    finally:
        for client in kernel.clients:
            client.stop_channels()
        if kernel.process is not None:
            end_family(kernel.process)
        shutil.rmtree(folder, ignore_errors=True)


def _short_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sinklora-"))
    if len(str(folder)) <= LONGEST_SOCKET:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="sinklora-", dir="/tmp"))
