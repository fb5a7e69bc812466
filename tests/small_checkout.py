"""A checkout with tiny notebooks, and the command `reproduce` in it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
import yaml

from sinklora.reproduction.notebooks import execute
from sinklora.reproduction.places import Places
from sinklora.reproduction.report.experiments import load_experiments

ROOT = Path(__file__).resolve().parents[1]

PARAMETERS = 'profile: str = "full"\nruns: str = "runs"\n'


def make_checkout(root: Path, notebooks: Mapping[str, Sequence[str]]) -> Path:
    """A checkout whose notebooks have these cells behind their parameters; a text with # is a heading."""
    (root / "notebooks").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / "data").mkdir()
    shutil.copy(ROOT / "data" / "paper_numbers.csv", root / "data")
    entries = []
    for name, sources in notebooks.items():
        cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        for source in sources:
            new = nbformat.v4.new_markdown_cell if source.startswith("#") else nbformat.v4.new_code_cell
            cells.append(new(source))
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata.kernelspec = {"name": "python3", "language": "python", "display_name": "Python 3"}
        nbformat.write(notebook, root / "notebooks" / f"{name}.ipynb")
        entry = {"notebook": name, "reproduces": "x", "outputs": [], "parameters": {"smoke": {}}}
        entries.append(entry)
    (root / "notebooks" / "experiments.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    return root


def reproducing(
    where: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """`sinklora reproduce` of the profile smoke, in a folder."""
    command = [sys.executable, "-m", "sinklora", "reproduce", "--profile", "smoke", *arguments]
    given = {**os.environ, "PYTHONPATH": str(ROOT)} if environment is None else dict(environment)
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=where, env=given, stdout=pipe, stderr=pipe, text=True)


def reproduced(
    where: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the same."""
    process = reproducing(where, *arguments, environment=environment)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def executed(root: Path, places: Places | None = None) -> Path:
    """The first notebook of a checkout, executed by this process."""
    experiment, *_ = load_experiments(root / "notebooks" / "experiments.yaml")
    return execute(
        experiment, "smoke", {"profile": "smoke"}, places or Places(root, root / "results", root / "runs")
    )


def files_of(root: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
