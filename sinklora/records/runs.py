"""Run directories addressed by the hash of their spec; a kill at any moment cannot fake a finished run.

`spec.json` is written first and `finished.json`, the outputs with their SHA-256, last: a directory with
the latter is complete, any other can be continued or begun again.
"""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import AcquireReturnProxy, BaseFileLock, FileLock, Timeout

from sinklora.records.files import as_json, atomic_write, file_hash, json_hash, sync, write_json
from sinklora.records.provenance import current_provenance

State = Literal["missing", "unfinished", "finished"]

WAIT = "SINKLORA_WAIT"  # the environment's word on waiting for a run that another process makes

WAITING = "waiting:"  # how the line begins that says so


class DamagedRunError(RuntimeError):
    """A run directory does not hold what its spec or its list of outputs says."""


class RunLockedError(RuntimeError):
    """Another process works in the same run directory; `holder` says which one in which."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"{holder}; wait for it or stop it")
        self.holder = holder


@dataclass(frozen=True)
class RunDirectory:
    """The directory `root/prefix-<16 hex digits of the spec's SHA-256>`, from missing to finished.

    `spec` is a dict of JSON types (a copy is kept), `prefix` makes the name readable.
    Raises TypeError or ValueError for a spec that is not JSON or a prefix that no file name can hold.
    """

    root: Path
    spec: Mapping[str, Any]
    prefix: str = "run"

    def __post_init__(self) -> None:
        if not isinstance(self.spec, Mapping):
            raise TypeError(f"spec is {self.spec!r}; give a dict of JSON types")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.prefix):
            raise ValueError(f"prefix is {self.prefix!r}; use letters, digits, '.', '_' and '-'")
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "spec", as_json(self.spec, "spec"))

    @property
    def path(self) -> Path:
        """Where the run lives."""
        return self.root / f"{self.prefix}-{json_hash(self.spec)[:16]}"

    def state(self) -> State:
        """`missing` (no spec.json), `finished` (there is a finished.json) or `unfinished`; quick."""
        if (self.path / "finished.json").exists():
            return "finished"
        return "unfinished" if (self.path / "spec.json").exists() else "missing"

    def create(self) -> Path:
        """Make the directory and its spec.json, or check the one that is there; returns the path.

        Raises DamagedRunError if it holds another spec.
        """
        if self.state() == "missing":
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "spec.json", self.spec)
        self._check_spec()
        return self.path

    def finish(self, outputs: Iterable[str | Path]) -> None:
        """Declare the run complete: write finished.json with size (bytes) and SHA-256 of each output.

        Outputs are names inside the directory or paths of files in it.
        Raises ValueError for an output that is not a file inside the directory.
        """
        self._check_spec()
        listed: dict[str, dict[str, Any]] = {}
        for name in sorted({self._name(output) for output in outputs}):
            file = self.path / name
            sync(file)
            listed[name] = {"sha256": file_hash(file), "bytes": file.stat().st_size}
        write_json(self.path / "finished.json", {"spec_sha256": json_hash(self.spec), "outputs": listed})

    def verify(self) -> None:
        """Check the spec and, of a finished run, every output.

        Raises DamagedRunError naming directory and file, FileNotFoundError for a missing run.
        """
        if self.state() == "missing":
            raise FileNotFoundError(f"there is no run in {self.path}")
        self._check_spec()
        if self.state() != "finished":
            return
        manifest = self._read("finished.json")
        outputs = manifest.get("outputs")
        if manifest.get("spec_sha256") != json_hash(self.spec) or not isinstance(outputs, dict):
            raise self._damage("finished.json", "does not belong to this spec")
        for name, record in outputs.items():
            file = self.path / name
            if not file.is_file():
                raise self._damage(name, "is missing")
            if record != {"sha256": file_hash(file), "bytes": file.stat().st_size}:
                raise self._damage(name, "has changed since the run finished")

    @contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Hold the run for this process alone; the lock ends with the process, however it ends.

        With `wait` it says on standard error for whom it waits, and waits; without, or where SINKLORA_WAIT is
        0, it raises RunLockedError with the other process's id. RuntimeError where a thread would wait for
        itself. Under torchrun the process of rank 0 holds it for all ranks, which work on one run together
        and do not wait here: `sinklora.train.shared_run` tells them when rank 0 has it.
        """
        if os.environ.get("RANK", "0") != "0":
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / f".{self.path.name}.lock")
        owner = self.root / f".{self.path.name}.owner"  # apart: who asks for a lock may empty its file
        with self._acquired(lock, owner, wait):
            atomic_write(owner, f"{os.getpid()} {socket.gethostname()}\n")
            try:
                yield
            finally:
                owner.unlink(missing_ok=True)

    def _acquired(self, lock: BaseFileLock, owner: Path, wait: bool) -> AcquireReturnProxy:
        try:
            return lock.acquire(blocking=False)
        except Timeout:
            holder = f"{_process_of(owner)} works in {self.path}"
        if not may_wait(wait):
            raise RunLockedError(holder)
        say_waiting(holder)
        return lock.acquire()

    def reuse_or(self, work: Callable[[Path], Iterable[str | Path]], wait: bool = True) -> Path:
        """The path of the finished run; unless it is there, `work(path)` makes the outputs that it returns.

        Raises DamagedRunError for a finished run whose files changed, RunLockedError without `wait`.
        """
        with self.lock(wait):
            if self.state() == "finished":
                self.verify()
            else:
                self.finish(work(self.create()))
        return self.path

    def _name(self, output: str | Path) -> str:
        home = self.path.resolve()
        file = Path(output).resolve()
        if not file.is_relative_to(home):
            file = (home / output).resolve()
        if not file.is_relative_to(home) or not file.is_file():
            raise ValueError(f"output {str(output)!r} is not a file inside {self.path}")
        return file.relative_to(home).as_posix()

    def _check_spec(self) -> None:
        if self._read("spec.json") != self.spec:
            raise self._damage("spec.json", "does not hold the spec that the directory is named after")

    def _read(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self._damage(name, f"cannot be read ({type(error).__name__})") from error
        if not isinstance(value, dict):
            raise self._damage(name, "is not a JSON object")
        return value

    def _damage(self, name: str, what: str) -> DamagedRunError:
        advice = "delete the directory to run it again"
        return DamagedRunError(f"run {self.path} is damaged: {name} {what}; {advice}")


def may_wait(wait: bool) -> bool:
    """Whether to wait for a run that another process makes: `wait`, unless SINKLORA_WAIT is 0."""
    return wait and os.environ.get(WAIT, "1") != "0"


def say_waiting(holder: str) -> None:
    """Say for whom this process waits, on standard error: what a notebook prints there is not kept in its
    results.
    """
    print(f"{WAITING} {holder} ({WAIT}=0: do not wait)", file=sys.stderr, flush=True)


def _process_of(owner: Path) -> str:
    """The process that wrote the file, with its machine where that is another one."""
    try:
        number, _, machine = owner.read_text(encoding="utf-8").strip().partition(" ")
    except OSError:
        return "process of unknown id"
    return f"process {number}" + (f" on {machine}" if machine not in ("", socket.gethostname()) else "")


def remember(
    key: Mapping[str, Any],
    compute: Callable[[], Any],
    *,
    runs: Path,
    prefix: str,
    name: str = "rows",
    used: list[Path] | None = None,
) -> Any:
    """The JSON value that belongs to `key`: computed the first time, read back ever after.

    It lies in `name.json` of the run directory `runs/prefix-<hash of key>`, beside `provenance.json`: which
    code computed it, where, when and in how many `seconds`. The directory is added to `used`.
    What is returned was read from the file the first time as well, so that both times it is the same (tuples
    are lists, keys strings). Who asks while another process computes it waits for that one.
    Raises TypeError or ValueError for a value that JSON does not hold, DamagedRunError for a changed file.
    """

    def work(folder: Path) -> list[str]:
        started, made_by = time.perf_counter(), current_provenance()
        write_json(folder / f"{name}.json", compute())
        seconds = round(time.perf_counter() - started, 1)
        write_json(folder / "provenance.json", {**made_by, "seconds": seconds})
        return [f"{name}.json", "provenance.json"]

    folder = RunDirectory(runs, key, prefix).reuse_or(work)
    if used is not None:
        used.append(folder)
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def run_records(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """What a result says of the finished runs that it was made of, each once: `run` (the folder's name),
    `spec_sha256`, and the `commit`, `dirty`, `changed_files`, `time` and `seconds` of its making.

    None, and no files, for what a run does not say: measurements were once kept without their provenance.
    """
    records = []
    for folder in dict.fromkeys(folders):
        manifest = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
        file = folder / "provenance.json"
        made_by = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        record = {"run": folder.name, "spec_sha256": manifest["spec_sha256"]}
        record |= {field: made_by.get(field) for field in ("commit", "dirty", "time", "seconds")}
        records.append({**record, "changed_files": made_by.get("changed_files", [])})
    return records
