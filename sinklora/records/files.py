"""Files that are whole or absent: atomic writes, hashes of files, hashes of JSON values."""

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
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


def sources_hash(package: Path, parts: Iterable[str] = (".",)) -> str:
    """SHA-256 (64 hex digits) over the Python and C++ files of a package, or of some `parts` of it (folders,
    files) alone: what a number is known by that other code would not give.

    Raises FileNotFoundError for a part that is not there.
    """
    found: set[Path] = set()
    for part in parts:
        place = package / part
        if not place.exists():
            raise FileNotFoundError(f"part={part!r}: is not there in {package.name}")
        found |= {path for path in (place, *place.rglob("*")) if path.suffix in (".py", ".cpp")}
    told = [f"{path.relative_to(package).as_posix()} {file_hash(path)}" for path in sorted(found)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


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
