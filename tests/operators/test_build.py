"""Building compiled operators, by the example of the column sums: whole or not at all, never in the way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import rest_slow
from sinklora.cache.column_sums_cpu import COLUMN_SUMS
from sinklora.operators.build import INSTRUCTIONS, CompiledOperator

needs_compiler = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in INSTRUCTIONS or shutil.which("c++") is None,
    reason="needs a C++ compiler and AVX2 or AVX-512",
)

# In a process of its own: an operator is registered once.
LONG_PROMPT = """
import logging, torch
logging.basicConfig(level=logging.DEBUG)
from sinklora.cache.column_sums_cpu import COLUMN_SUMS
from sinklora.cache.scored_attention import attend_and_sum, attend_and_sum_in_blocks
query = torch.randn(1, 4, 1100, 16)
found = attend_and_sum(query, query[:, :2], query[:, 2:], 0.25)
expected = attend_and_sum_in_blocks(query, query[:, :2], query[:, 2:], 0.25)
torch.testing.assert_close(found, expected)
print("compiled" if COLUMN_SUMS.find() else "in blocks")
"""


def long_prompt(cache: Path, compiler: str) -> subprocess.CompletedProcess[str]:
    """A prompt of 1100 tokens with another cache and compiler: standard output says how it was done."""
    environment = {**os.environ, "SINKLORA_CACHE": str(cache), "CXX": compiler, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LONG_PROMPT]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True)


def copying_compiler(folder: Path, library: Path) -> str:
    """A compiler that takes no time: it hands out what was compiled before."""
    script = folder / "compiler"
    # The last argument is the name of the result.
    script.write_text(f'#!/bin/sh\nfor result; do :; done\ncp "{library}" "$result"\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("compiler", rest_slow(["/nowhere/c++", "false", 'g++ "']))
def test_without_a_working_compiler_attention_goes_on_in_blocks(compiler: str, tmp_path: Path) -> None:
    done = long_prompt(tmp_path, compiler)
    assert done.stdout == "in blocks\n"
    assert done.stderr.count("column_sums is not compiled") == 1
    assert not list(tmp_path.rglob("*.so"))


@needs_compiler
@pytest.mark.slow
def test_a_damaged_library_is_made_again_and_a_good_one_needs_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert COLUMN_SUMS.find() is not None
    compiler = copying_compiler(tmp_path, COLUMN_SUMS.library_path())
    monkeypatch.setenv("SINKLORA_CACHE", str(tmp_path / "cache"))
    COLUMN_SUMS.library_path().parent.mkdir(parents=True)
    COLUMN_SUMS.library_path().write_bytes(b"no library")
    assert long_prompt(tmp_path / "cache", compiler).stdout == "compiled\n"
    assert COLUMN_SUMS.library_path().stat().st_size > 10_000
    assert [x.name for x in COLUMN_SUMS.library_path().parent.iterdir()] == ["column_sums_cpu.so"]
    assert long_prompt(tmp_path / "cache", "/nowhere/c++").stdout == "compiled\n"


@needs_compiler
def test_a_failed_build_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "kernels" / "column_sums.so"
    monkeypatch.setenv("CXX", "/nowhere/c++ -O0")
    with pytest.raises(FileNotFoundError, match="install g\\+\\+, or name one in CXX"):
        COLUMN_SUMS.compile(library)
    monkeypatch.setenv("CXX", "c++ -fno-such-option")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        COLUMN_SUMS.compile(library)
    assert "no-such-option" in failed.value.stderr
    assert not list(library.parent.iterdir())


def test_without_a_folder_for_libraries_there_is_no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home, and no SINKLORA_CACHE."""

    def homeless(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("sinklora.operators.build.cache_folder", homeless)
    assert CompiledOperator("another_name", COLUMN_SUMS.source).find() is None
