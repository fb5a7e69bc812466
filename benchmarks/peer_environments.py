"""An environment for each peer: this one's packages, but for those that a peer needs in other versions.

Pins are all that differs, each to a version: pip resolves nothing, and what is measured stays what it was.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from sinklora.records.files import atomic_write

PLACE = Path(".venv-peers")  # below the checkout; git ignores it, `make distclean` removes it


class NotInstalledError(RuntimeError):
    """An environment could not be made; the message is pip's reason."""


@dataclass(frozen=True)
class Environment:
    """`pins`: what it has in place of this environment's packages; none: this environment itself."""

    name: str
    pins: tuple[str, ...] = ()


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("today"),
        Environment(
            "kvpress",  # asks for transformers below 5.3, pandas below 3, cachetools below 6, fire below 0.7
            (
                "kvpress==0.5.5",
                "transformers==5.2.0",
                "tokenizers==0.22.2",
                "huggingface_hub==1.33.0",
                "typer-slim==0.24.0",
                "pandas==2.3.3",
                "cachetools==5.5.2",
                "fire==0.6.0",
                "termcolor==3.3.0",
            ),
        ),
        Environment(
            "kvpress-today", ("kvpress==0.5.5", "cachetools==5.5.2", "fire==0.6.0", "termcolor==3.3.0")
        ),
        Environment("quanto", ("optimum-quanto==0.2.7", "ninja==1.13.2")),
        Environment("hqq", ("hqq==0.2.8.post1", "einops==0.8.2", "termcolor==3.3.0")),
        Environment("trl", ("trl==1.16.0",)),
        Environment(
            "longlora",  # its requirements.txt asks for this transformers
            ("transformers==4.34.0", "tokenizers==0.14.1", "huggingface_hub==0.17.3", "einops==0.8.2"),
        ),
        Environment("longlora-today", ("einops==0.8.2",)),
    )
}


def interpreter(environment: Environment, root: Path) -> Path:
    """The environment's Python; the environment is made where it is not there with these pins.

    Raises NotInstalledError with pip's reason.
    """
    if not environment.pins:
        return Path(sys.executable)
    folder = root / PLACE / environment.name
    python, made_of = folder / "bin" / "python", folder / "pins.txt"
    pins = "\n".join(environment.pins) + "\n"
    if made_of.is_file() and made_of.read_text(encoding="utf-8") == pins:
        return python
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(folder)], environment)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(_run([str(python), "-c", ask], environment).strip())
    (site / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--disable-pip-version-check"]
    _run([*pip, "--quiet", "--no-deps", *environment.pins], environment)
    atomic_write(made_of, pins)
    return python


def _run(command: list[str], environment: Environment) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.lower().startswith("error")]
        reason = (lines or done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise NotInstalledError(f"could not be installed: {reason.removeprefix('ERROR: ')}")
    return done.stdout
