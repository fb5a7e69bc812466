"""Files of YAML: their keys and values, and the name of one that holds none."""

from pathlib import Path

import pytest

from sinklora.records.yaml_files import read_mapping


def test_keys_and_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("base: data/base\nsteps: 3\n")
    assert read_mapping(path, "base:") == {"base": "data/base", "steps": 3}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"base: [", r"is no YAML \(while parsing"),
        (b"base: \xff", r"is no YAML \('utf-8' codec"),
        (b"- base", r"expected keys and values, such as base:, not \['base'\]"),
        (b"", "expected keys and values, such as base:, not None"),
    ],
)
def test_a_file_without_keys_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.yaml: {words}"):
        read_mapping(path, "base:")
