"""Lines of JSON: what they hold, and the place of what is damaged."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sinklora.records.jsonl import json_line, json_lines, write_lines

LINES = '{"a": "x\\u2028y"}\n{"a": 2}\n'


def opened(path: Path) -> Any:
    """To be written, packed as its name says."""
    if path.suffix == ".zst":
        return pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd")
    return gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb")


@pytest.mark.parametrize("name", ["plain.jsonl", "packed.jsonl.gz", "packed.jsonl.zst"])
def test_lines_are_read_plain_and_packed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with opened(path) as file:
        file.write(LINES.encode())
    assert list(json_lines(path)) == [
        (f"{path}, line 1", {"a": "x\u2028y"}),
        (f"{path}, line 2", {"a": 2}),
    ]


@pytest.mark.parametrize(("line", "words"), [(b"{", "not a"), (b"[1]", "a list"), (b"\xff", "not a")])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2: {words}"):
        list(json_lines(path))


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_packed_file_that_is_cut_short_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl.{ending}"
    with opened(path) as file:
        file.write(b'{"a": 1}\n' * 9)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"a\.jsonl\.{ending}, line \d+: the packed file is damaged"):
        list(json_lines(path))


def test_a_file_packed_in_several_pieces_is_read_whole(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.jsonl.zst", [{"a": f"{n**5} é"} for n in range(50_000)]
    with opened(path) as file:
        file.write("".join(map(json_line, rows)).encode())
    path.write_bytes(2 * path.read_bytes())
    assert [row for _, row in json_lines(path)] == 2 * rows


def test_a_packed_file_with_a_wrong_byte_is_named_wherever_that_is(tmp_path: Path) -> None:
    path, said = tmp_path / "a.jsonl.gz", set[str]()
    rows = [{"text": "".join(map(chr, range(32 + n, 120)))} for n in range(9)]
    whole = gzip.compress("".join(map(json_line, rows)).encode())
    for place in range(10, len(whole)):  # behind the header, which has bytes that nobody reads
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz, line \d+: ") as raised:
            list(json_lines(path))
        said.add(type(raised.value.__cause__).__name__)
    assert {"BadGzipFile", "error"} <= said


def test_blank_lines_are_faults_unless_they_are_to_be_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n \n{"a": 2}\n\n')
    assert [place for place, _ in json_lines(path, skip_blank=True)] == [f"{path}, line {n}" for n in (1, 3)]
    with pytest.raises(ValueError, match="line 2: not a line of JSON"):
        list(json_lines(path))


def test_rows_that_were_written_are_read(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.jsonl", [{"a": "x\u2028é"}, {"a": 2}]
    write_lines(path, rows)
    assert [row for _, row in json_lines(path)] == rows and "é" in path.read_text(encoding="utf-8")
