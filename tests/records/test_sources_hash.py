"""The hash of a package's sources: another one for every change, the same wherever the package lies."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from sinklora.records.files import sources_hash

SOURCES = {"a.py": "1", "room/b.py": "2", "room/c.cpp": "3", "other/d.py": "4"}


def package(folder: Path, texts: Mapping[str, str] = SOURCES) -> Path:
    """A package of these files."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_sources_are_known_by_their_names_and_contents(tmp_path: Path) -> None:
    known = sources_hash(package(tmp_path / "one"))
    assert sources_hash(package(tmp_path / "deep" / "two", SOURCES | {"notes.txt": "5"})) == known
    for number, name in enumerate(SOURCES):
        assert sources_hash(package(tmp_path / f"{number}", SOURCES | {name: "changed"})) != known
    (tmp_path / "one" / "a.py").rename(tmp_path / "one" / "e.py")
    assert sources_hash(tmp_path / "one") != known


def test_parts_are_known_by_themselves(tmp_path: Path) -> None:
    parts = sources_hash(package(tmp_path), ("room", "a.py"))
    assert sources_hash(package(tmp_path, {"other/d.py": "changed"}), ("a.py", "room")) == parts
    assert sources_hash(package(tmp_path, {"room/c.cpp": "changed"}), ("room", "a.py")) != parts
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sources_hash(tmp_path, ("nowhere",))
