"""A measurement in a fresh process: what ran before holds memory, threads and settings of the C library."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def in_own_process(
    function: str, *arguments: Any, what: str, environment: Mapping[str, str] | None = None
) -> Any:
    """What `function` ("package.module:name") returns for JSON arguments, as JSON, in a process of its own.

    `environment` is added to this process's; `what` names the measurement in an error. Raises RuntimeError
    with the last words of the process where it fails.
    """
    command = [sys.executable, "-m", "sinklora.evaluate.own_process", function, json.dumps(arguments)]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, check=False, capture_output=True, text=True
    )
    if done.returncode:
        killed = " (killed: too little memory?)" if done.returncode < 0 else ""
        raise RuntimeError(f"{what} failed{killed}:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _answer(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(arguments))))


if __name__ == "__main__":
    _answer(*sys.argv[1:])
