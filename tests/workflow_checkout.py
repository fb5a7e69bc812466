"""A checkout whose notebook trains two tiny fine-tunes, and the command `workflow run` in it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
import yaml

from small_checkout import ROOT, make_checkout
from tiny_training import make_place

PARAMETERS = """profile: str = "full"
recipe: str = "recipe.yaml"
patterns: list = ["full", "sf"]
seeds: list = [0]
context: int = 64
steps: int = 6
max_length: int = 64
runs: str = "runs"
"""

TRAINING = """
from pathlib import Path
import pandas as pd
from sinklora.reproduction.extension.recipe import read_recipe
from sinklora.reproduction.longbench.study import extended_models
from sinklora.reproduction.report.outputs import Report, from_repository_root
from sinklora.train.run import train

from_repository_root()
rows = []
for spec in extended_models(read_recipe(recipe), globals()).specs():
    run = train(spec, runs=Path(runs), progress=False)
    rows.append({"pattern": spec.pattern, "loss": pd.read_csv(run.path / "loss.csv").loss.iloc[-1]})
facts = {"paper_item": "Table 6", "caption": "", "verdict": ""}
Report("05_longbench", profile, {}).table("table6", pd.DataFrame(rows), **facts)
"""

RECIPE = {
    "original_context": 32,
    "training": {
        "base": "base",
        "corpus": {"source": "dir:corpus"},
        "context": 64,
        "batch_size": 2,
        "micro_batch_size": 1,
        "learning_rate": 0.01,
        "save_every": 2,
        "loss_chunk": 16,
    },
    "stride": 16,
    "texts": {"validation": {"corpus": {"source": "dir:corpus"}, "pieces": 1, "tokens": 64}},
}


def make_workflow_checkout(root: Path, **others: list[str]) -> Path:
    """The checkout; `others`: cells of further notebooks, by their names."""
    make_checkout(root, {"05_longbench": [TRAINING], **others})
    shutil.copytree(ROOT / "workflow", root / "workflow")
    notebook = root / "notebooks" / "05_longbench.ipynb"
    cells = nbformat.read(notebook, as_version=4)
    cells.cells[0].source = PARAMETERS
    nbformat.write(cells, notebook)
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    make_place(root)
    return root


def start(
    root: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[str]":
    """`sinklora workflow run` of the profile smoke, in a session of its own."""
    command = [sys.executable, "-m", "sinklora", "workflow", "run", "--profile", "smoke", *arguments]
    given = {**(environment or os.environ), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given["SINKLORA_CACHE"] = str(root / "cache")
    out = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=root, env=given, stdout=out, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def ended(process: "subprocess.Popen[str]", seconds: float = 300) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


def outcomes(root: Path) -> dict[str, bytes]:
    """What must be the same whatever happened on the way: weights, losses, tables."""
    kept = [*root.glob("runs/*/adapter/*.safetensors"), *root.glob("runs/*/loss.csv")]
    kept += root.glob("results/smoke/tables/*")
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}
