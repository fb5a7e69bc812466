"""Arrays that were dear to make, kept as files that are mapped into memory and checked by hash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sinklora.records.files import are_unchanged, atomic_write, file_hash

HASHES = "sha256.json"


def kept_arrays(folder: Path, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays by name, memory-mapped, that `make` gave when `folder` was written; it is asked again where
    the files do not match their recorded hashes.
    """
    if not are_unchanged(folder, HASHES):
        _write(folder, make())
    recorded = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    return {
        name.removesuffix(".npy"): np.load(folder / name, mmap_mode="r", allow_pickle=False)
        for name in recorded
    }


def _write(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        temporary = folder / f".{name}.{os.getpid()}.npy"
        np.save(temporary, array, allow_pickle=False)
        os.replace(temporary, folder / f"{name}.npy")
    hashes = {f"{name}.npy": file_hash(folder / f"{name}.npy") for name in arrays}
    atomic_write(folder / HASHES, json.dumps(hashes))
