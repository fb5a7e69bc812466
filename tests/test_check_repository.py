"""The repository's own linter finds what it looks for, and nothing in a clean repository."""

import shutil
import subprocess
from pathlib import Path

import pytest

from check_repository import CHECKS, MACHINE_PATH, definitions, main, stored_results

ROOT = Path(__file__).resolve().parents[1]
READ = ("pyproject.toml", "constraints.txt", "environment.yml", "Makefile", "LICENSE", "CITATION.cff")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files that the checks read, and none of the code."""
    for name in (
        "pyproject.toml",
        "constraints.txt",
        "environment.yml",
        "Makefile",
        "LICENSE",
        "CITATION.cff",
    ):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "sinklora").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "00.ipynb").write_text('{"cells": []}')
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    return tmp_path


def code_cell(source: str, outputs: str = "[]") -> str:
    return (
        '{"cells": [{"cell_type": "code", "source": ["' + source + '"], "outputs": ' + outputs + ", "
        '"execution_count": null}]}'
    )


def test_a_clean_repository_passes(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(clone) == 0
    assert f"{len(CHECKS)} checks" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "before", "after", "words"),
    [
        ("pyproject.toml", '"typer>=0.15"', '"typer>=0.15,<2"', "typer<2,>=0.15 has more than a lower bound"),
        ("pyproject.toml", '"typer>=0.15"', '"typer>=99"', "pins 0.29.2 for typer>=99"),
        ("pyproject.toml", '"typer>=0.15"', '"typers>=1"', "pins None for typers>=1"),
        (
            "constraints.txt",
            "torch==2.13.0",
            "torch==2.13.0+cpu",
            "torch==2.13.0+cpu is found on one",
        ),
        (
            "environment.yml",
            "notebooks,eval,real,chat,workflow,docs,dev",
            "notebooks,dev",
            "environment.yml: installs",
        ),
        ("environment.yml", "python=3.11", "python=3.9", "python=3.9, but pyproject.toml asks for >=3.11"),
        ("environment.yml", "name: sinklora", "name: sink", "name 'sink'"),
        ("Makefile", "-c constraints.txt", "", "Makefile: does not install"),
        ("LICENSE", "Apache License", "MIT License", "is not the whole Apache License"),
        ("CITATION.cff", "version: 0.1.0", "version: 0.2.0", "version 0.2.0, in pyproject.toml 0.1.0"),
        ("CITATION.cff", "license: Apache-2.0", "license: MIT", "license MIT"),
    ],
)
def test_what_disagrees_is_named(
    clone: Path, name: str, before: str, after: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (clone / name).read_text(encoding="utf-8")
    assert before in text
    (clone / name).write_text(text.replace(before, after), encoding="utf-8")
    assert main(clone) == 1
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "notebooks/01.ipynb",
            code_cell("1", '[{"text": "1"}]'),
            "01.ipynb: cell 0 is stored with",
        ),
        ("notebooks/01.ipynb", code_cell("f = lambda x: x"), "01.ipynb: defines lambda x: x"),
        ("weights.pt", "", "weights.pt: can run code"),
        ("long.txt", "x" * (12 * 2**20 + 1), "long.txt: 12582913 bytes"),
        (
            "sinklora/reach.py",
            "def reach() -> None: ...",
            "sinklora/reach.py: named like a function",
        ),
        (
            "sinklora/path.py",
            "from pathlib import Path\nfrom sinklora.path import Path as Again",
            "sinklora/path.py:2: Path is imported from sinklora.path",
        ),
        ("notes.md", "see /scratch/jobs/x", "notes.md: names a machine: /scratch/jobs"),
    ],
)
def test_a_file_that_does_not_belong_is_named(
    clone: Path, name: str, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (clone / name).write_text(text, encoding="utf-8")
    assert main(clone) == 1
    assert words in capsys.readouterr().out


def test_definitions_and_results_of_notebooks_are_found() -> None:
    assert definitions("%matplotlib inline\nx = 1\ndef f():\n    pass\nclass A: pass") == [
        "def f():",
        "class A:",
    ]
    assert definitions("!ls\nfor i in range(3):\n    print(i)") == []
    ran = {"cell_type": "code", "source": "1", "outputs": [], "execution_count": 3}
    shown = {"cell_type": "code", "source": "1", "outputs": [{"text": "1"}], "execution_count": None}
    clean = {"cell_type": "code", "source": "1", "outputs": [], "execution_count": None}
    assert stored_results({"cells": [{"cell_type": "markdown"}, clean, ran, shown]}) == [2, 3]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see /scratch/jobs/x", True),
        ('"/home/ann/data"', True),
        ("(/tmp/a.txt)", True),
        ("pip install --extra-index-url http://localhost/simple", True),
        ("https://host/home/page", False),
        ("~/scratch/x and $HOME/tmp/x", False),
        ("results/tmp/x, #!/usr/bin/env bash, /proc/cpuinfo", False),
        ("tokens/scratch", False),
    ],
)
def test_machine_paths_are_recognised(text: str, found: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is found
