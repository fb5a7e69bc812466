"""A notebook that stops: one sentence says where, by what, what is kept and how to go on."""

import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from sinklora.reproduction.places import Places
from sinklora.reproduction.stopped_notebook import REFUSED, NotebookStoppedError, how_far, stopped
from small_checkout import executed, make_checkout, reproducing

KEPT = r"finished runs and measurements are kept in \S+/runs, tables and figures in \S+/results; the same"


def test_a_killed_kernel_is_a_sentence_and_what_was_there_stays(tmp_path: Path) -> None:
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    root = make_checkout(tmp_path, {"20_new": ["# Doing things", "1", kill, "2"]})
    before = root / "results" / "smoke" / "notebooks" / "20_new.ipynb"
    before.parent.mkdir(parents=True)
    before.write_text("before")
    with pytest.raises(NotebookStoppedError) as caught:
        executed(root)
    where = r"20_new stopped in code cell 3 of 4 \(Doing things\): its kernel was ended by SIGKILL, as"
    assert re.match(f"{where}.* where memory runs out.*{KEPT}", str(caught.value))
    assert caught.value.exit_code == 1 and not caught.value.trace
    assert before.read_text() == "before"


@pytest.mark.parametrize(
    ("cell", "code", "cause"),
    [
        ("bytearray(1 << 60)", 1, r"memory ran out \(MemoryError\): give it more"),
        (
            "raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')",
            1,
            r"memory ran out \(Runtime",
        ),
        ("from sinklora.records.checks import check_counts\ncheck_counts(n=0)", 2, "ValueError: n=0"),
        ("from pathlib import Path\nPath('nowhere').read_text()", 1, "FileNotFoundError: .*'nowhere'"),
    ],
    ids=["memory", "memory of torch", "refusal", "fault"],
)
def test_an_error_in_a_cell(tmp_path: Path, cell: str, code: int, cause: str) -> None:
    with pytest.raises(NotebookStoppedError) as caught:
        executed(make_checkout(tmp_path, {"20_new": ["# First", cell]}))
    assert re.match(rf"20_new stopped in code cell 2 of 2 \(First\): {cause}.*{KEPT}", str(caught.value))
    trace = caught.value.trace
    assert caught.value.exit_code == code
    assert bool(trace) == ("nowhere" in cell), "a fault keeps the cell's traceback, none other"
    assert "\x1b" not in trace and "papermill" not in trace


def package(folder: Path) -> Path:
    """The file of a package in a folder, both made."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    return folder / "__init__.py"


def test_a_librarys_error_in_a_checkout_called_sinklora_is_a_fault(tmp_path: Path) -> None:
    root = tmp_path / "sinklora"
    library = root / ".venv" / "site-packages"
    use = f"import sys\nsys.path.append({str(library)!r})\nimport other\nother.fail()"
    make_checkout(root, {"20_new": [use]})
    package(library / "other").write_text("def fail():\n    raise ValueError('shapes differ')\n")
    with pytest.raises(NotebookStoppedError, match="ValueError: shapes differ") as caught:
        executed(root)
    assert caught.value.exit_code == 1 and "other.fail()" in caught.value.trace


@pytest.mark.parametrize(
    ("last", "code"),
    [
        ("File {home}/sinklora/sinklora/records/checks.py:1, in check()", REFUSED),
        ("File ~/sinklora/sinklora/records/checks.py:1, in check()", REFUSED),
        ("File ~/sinklora/sinklora/__init__.py:1, in __getattr__()", REFUSED),
        ("File {home}/sinklora/.venv/site-packages/other/__init__.py:1, in fail()", 1),
        ("File ~/sinklora/.venv/site-packages/other/__init__.py:1, in fail()", 1),
        ("Cell In[2], line 1, in <lambda>(x)", 1),  # which our code has called
    ],
)
def test_whose_code_raised_is_told_by_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, code: int
) -> None:
    for folder in ("sinklora", "sinklora/records", ".venv/site-packages/other"):
        package(tmp_path / "sinklora" / folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    ours = f"File {tmp_path}/sinklora/sinklora/records/checks.py:7, in f()"

    class CellError(Exception):
        ename, evalue = "ValueError", "n=0: expected at least 1"
        traceback = (ours, last.format(home=tmp_path))

    places = Places(tmp_path, tmp_path / "results", tmp_path / "runs")
    told = stopped("20_new", tmp_path / "none", CellError(), None, places)
    assert told.exit_code == code and bool(told.trace) == (code == 1)


def alive(number: str) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(int(number)).status() != psutil.STATUS_ZOMBIE
    return False


def test_a_scheduler_that_ends_it_ends_the_kernel_and_all_that_it_started(tmp_path: Path) -> None:
    start = (
        "import subprocess, time, os\n"
        "child = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "open('ids', 'w').write(f'{os.getpid()} {child.pid}\\n')\ntime.sleep(60)"
    )
    root = make_checkout(tmp_path, {"20_new": [start]})
    process = reproducing(root)
    while not (root / "ids").is_file() or not (root / "ids").read_text().endswith("\n"):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM and output == "20_new: x\n", errors
    said = r"Error: 20_new stopped in code cell 2 of 2: it was told to end \(SIGTERM\)"
    assert re.match(f"{said}; {KEPT}", errors.splitlines()[-1]), errors
    assert "Traceback" not in errors and "pending" not in errors, errors
    assert not any(map(alive, (root / "ids").read_text().split()))


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (KeyboardInterrupt(), 130, "it was interrupted"),
        (SystemExit(129), 129, r"it was told to end \(SIGHUP\)"),
    ],
)
def test_signals_are_told_by_their_names(tmp_path: Path, error: BaseException, code: int, cause: str) -> None:
    places = Places(tmp_path, tmp_path / "results", tmp_path / "runs")
    told = stopped("20_new", tmp_path / "none", error, -15, places)
    assert told.exit_code == code and re.search(f": {cause}; {KEPT}", str(told))


def test_what_died_before_its_first_cell_is_told_so(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path / "results", tmp_path / "runs")
    told = stopped("20_new", tmp_path / "none.ipynb", RuntimeError("Kernel died"), -11, places)
    assert str(told).startswith("20_new stopped before its first cell: its kernel was ended by SIGSEGV; ")
    assert how_far(tmp_path / "none.ipynb") == "before its first cell"
    assert "exit status 3" in str(stopped("20_new", tmp_path / "none", RuntimeError(), 3, places))


def test_a_locked_run_is_a_refusal(tmp_path: Path) -> None:
    class CellError(Exception):
        ename, evalue, traceback = "RunLockedError", "process 7 works in runs/x", ("File a.py:1",)

    places = Places(tmp_path, tmp_path / "results", tmp_path / "runs")
    told = stopped("20_new", tmp_path / "none", CellError(), None, places)
    assert told.exit_code == REFUSED and not told.trace and "process 7 works" in str(told)
