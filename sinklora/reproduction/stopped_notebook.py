"""A notebook that stopped before its end, in one sentence: where, by what, what is kept, how to go on."""

import re
import signal
from pathlib import Path
from typing import Any

from sinklora.refusals import is_within
from sinklora.reproduction.places import Places

MEMORY = re.compile(
    r"MemoryError|OutOfMemoryError|can't allocate memory|[Cc]annot allocate memory|out of memory"
)

REFUSALS = ("ValueError", "TypeError", "FileNotFoundError", "ImportError", "ModuleNotFoundError")

ADVICE = "give it more, or take a smaller profile"

REFUSED, FAILED = 2, 1  # exit codes: what was asked for is wrong; it went wrong


class NotebookStoppedError(RuntimeError):
    """A notebook did not come to its end; `exit_code` is that of a command, `trace` what is worth reading."""

    def __init__(self, sentence: str, exit_code: int = FAILED, trace: str = "") -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
        self.trace = trace


def stopped(
    name: str, executed: Path, error: BaseException, exit_status: int | None, places: Places
) -> NotebookStoppedError:
    """What to raise for an `error` while a notebook was executed; `executed`: what there is of it.

    `exit_status` of its kernel: None while that runs. Errors of papermill tell of a cell's.
    """
    trace, exit_code = "", FAILED
    if isinstance(error, KeyboardInterrupt):
        cause, exit_code = "it was interrupted", 128 + signal.SIGINT
    elif isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        cause, exit_code = f"it was told to end ({_signal(error.code - 128)})", error.code
    elif exit_status is not None:
        cause = _death(exit_status)
    else:
        cause, exit_code, trace = _cell_error(error)
    kept = f"finished runs and measurements are kept in {places.runs}, tables and figures in {places.results}"
    return NotebookStoppedError(
        f"{name} stopped {how_far(executed)}: {cause}; {kept}; the same command goes on from there",
        exit_code,
        trace,
    )


def how_far(executed: Path) -> str:
    """In which cell a notebook that papermill executes is, with the section's title; in words."""
    import nbformat

    try:
        cells = nbformat.read(executed, as_version=4).cells
    except (OSError, ValueError):
        return "before its first cell"
    title, last = "", "before its first cell"
    code = [cell for cell in cells if cell.cell_type == "code" and not _is_injected(cell)]
    for cell in cells:
        if cell.cell_type == "markdown" and (headings := re.findall(r"^#+ (.*)", cell.source, re.MULTILINE)):
            title = f" ({headings[-1].strip()})"
        elif cell in code and cell.metadata.get("papermill", {}).get("start_time"):
            last = f"in code cell {code.index(cell) + 1} of {len(code)}{title}"
    return last


def _is_injected(cell: Any) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", ())


def _death(exit_status: int) -> str:
    if exit_status >= 0:
        return f"its kernel ended by itself with exit status {exit_status}"
    killed = f"its kernel was ended by {_signal(-exit_status)}"
    if exit_status == -signal.SIGKILL:
        return f"{killed}, as where memory runs out: {ADVICE}"
    return killed


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _cell_error(error: Any) -> tuple[str, int, str]:
    """Cause, exit code and traceback of an error in a cell."""
    name, said = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error))
    lines = "\n".join(getattr(error, "traceback", None) or [])
    trace = re.sub(r"\x1b\[[0-9;]*m", "", lines)
    told = f"{name}: {' '.join(said.split())}".removesuffix(": ").rstrip(".")
    if MEMORY.search(told):
        return f"memory ran out ({told:.200}): {ADVICE}", FAILED, ""
    if name in ("RunLockedError", "DamagedRunError") or (name in REFUSALS and _raised_by(trace, "sinklora")):
        return told, REFUSED, ""
    return told, FAILED, trace


def _raised_by(trace: str, package: str) -> bool:
    """The same as `refusals.raised_by`, of a traceback as IPython writes it."""
    frames = re.findall(r"^(?:File (.*?):\d+|Cell In)", trace, re.MULTILINE)  # a cell's frame has no file
    return bool(frames and frames[-1]) and is_within(_module(Path(frames[-1])), package)


def _module(file: Path) -> str:
    """The dotted name of a file's module; IPython writes ~ for the home.

    By the packages that hold the file, and not by a known place: a kernel imports the sources of the folder
    that it runs in, which this process may not have.
    """
    file = file.expanduser()
    names, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        names.append(folder.name)
        folder = folder.parent
    return ".".join(reversed(names))
