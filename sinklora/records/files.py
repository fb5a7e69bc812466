"""Files that are whole or absent: atomic writes, hashes of files, hashes of JSON values."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def as_json(value: Any, where: str = "value") -> Any:
    """A copy of `value` as JSON would give it back; tuples become lists.

    Raises TypeError or ValueError naming the place of whatever JSON does not hold.
    """
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{where} has the key {wrong[0]!r}; keys must be strings")
        return {key: as_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if type(value) not in (str, int, float, bool, type(None)):
        kind = type(value).__name__
        raise TypeError(f"{where} is {value!r} ({kind}); use dict, list, str, int, float, bool or None")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}; JSON holds finite numbers only")
    return value


def json_hash(value: Any, where: str = "value") -> str:
    """SHA-256 (64 hex digits) of canonical JSON: the order of keys does not matter, 1 and 1.0 differ.

    Raises TypeError or ValueError naming the place of whatever JSON does not hold.
    """
    text = json.dumps(as_json(value, where), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents_hash(*paths: Path) -> str:
    """SHA-256 over what files hold, and all files of folders, with their names there; hidden ones and what
    Python compiled left out. A path where nothing is counts as an empty folder.
    """
    told = []
    for path in paths:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            place = file.relative_to(path.parent)
            left_out = any(part == "__pycache__" or part.startswith(".") for part in place.parts)
            if file.is_file() and not left_out:
                told.append([place.as_posix(), file_hash(file)])
    return json_hash(told)


def visible_files(root: Path, pattern: str = "*") -> list[Path]:
    """The files below a folder in the order of their paths: none that is hidden or in a hidden folder
    (`.git`, `.ipynb_checkpoints`), and no older copies that editors keep (`book.txt~`).
    """
    files = []
    for path in sorted(root.rglob(pattern)):
        parts = path.relative_to(root).parts
        is_left_out = path.name.endswith("~") or any(part.startswith(".") for part in parts)
        if not is_left_out and path.is_file():
            files.append(path)
    return files


def name_in(root: Path, path: Path) -> str:
    """What a file is called in a folder, with "/" on every system; bytes that are no UTF-8 as \\xe9.

    Names of other bytes cannot be hashed, printed or written.
    """
    name = path.relative_to(root).as_posix()
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def are_unchanged(folder: Path, hashes: str) -> bool:
    """Whether `folder / hashes` (JSON, SHA-256 by name) is there and names files that are all as it says."""
    try:
        recorded = json.loads((folder / hashes).read_text(encoding="utf-8"))
        return bool(recorded) and all(file_hash(folder / name) == digest for name, digest in recorded.items())
    except (OSError, ValueError, AttributeError):
        return False


def atomic_write(path: str | Path, data: str | bytes) -> None:
    """Write a file that is the old one or the whole new one, whenever the process or the machine dies."""
    path = Path(path)
    content = data.encode("utf-8") if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically; TypeError or ValueError for what JSON does not hold."""
    atomic_write(path, json.dumps(as_json(value), indent=2, ensure_ascii=False) + "\n")


def sync(path: Path) -> None:
    """Bring a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
