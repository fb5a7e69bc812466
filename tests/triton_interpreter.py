"""Kernels of Triton without a GPU: Triton decides on import whether it interprets, so in another process."""

import os
import subprocess
import sys
from pathlib import Path


def check_interpreted(module: str, folder: Path) -> None:
    """Call `check()` of a module of tests in a folder; raises CalledProcessError where it fails."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    paths = [str(Path.cwd()), str(folder), str(folder.parent), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    command = [sys.executable, "-c", f"import {module}; {module}.check()"]
    subprocess.run(command, check=True, env=environment)
