"""New files of a folder that take the place of the old ones together, whenever the process dies.

The new files are written to a folder inside of it, which one rename makes valid: from then on they count,
and they move to their places. Whoever reads in between reads them where they are (`valid_folder`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sinklora.records.files import sync

WRITING = ".writing"  # may be torn

WRITTEN = ".written"  # complete: counts instead of the files of the same names around it

DONE = ".done"  # all at their places


@contextmanager
def replaced_files(folder: Path) -> Iterator[Path]:
    """A folder to write into, whose files are in `folder` once the block has ended without an exception.

    One process at a time; what a killed one left is put right first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    finish_replacement(folder)
    new = folder / WRITING
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        for path in [*_files(new), new]:
            sync(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    new.rename(folder / WRITTEN)
    sync(folder)
    finish_replacement(folder)


def valid_folder(folder: Path) -> Path:
    """Where the files of `folder` lie that count: in it, or in the new ones that were not moved yet."""
    return folder / WRITTEN if (folder / WRITTEN).is_dir() else folder


def finish_replacement(folder: Path) -> None:
    """Move complete new files to their places, where a killed process left some: they hide later ones."""
    new, done = folder / WRITTEN, folder / DONE
    shutil.rmtree(done, ignore_errors=True)
    if not new.is_dir():
        return
    for path in _files(new):
        place = folder / path.relative_to(new)
        place.parent.mkdir(exist_ok=True)
        _link_over(path, place)
        sync(place.parent)
    new.rename(done)
    sync(folder)
    shutil.rmtree(done)


def _link_over(path: Path, place: Path) -> None:
    """Let `place` name the content of `path`, which stays; copied where the file system has no hard links."""
    temporary = place.with_name(f".{place.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
        sync(temporary)
    os.replace(temporary, place)
    # Of two names for the same content, as after an earlier try, the first stays behind.
    temporary.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
