"""The jobs of the profile smoke, as Snakemake lists them: every notebook, behind its fine-tunes."""

import os
import re
import subprocess
import sys
from pathlib import Path

from sinklora.reproduction.report.experiments import load_experiments


def test_every_notebook_is_a_job_behind_its_fine_tunes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sinklora", "workflow", "run", "--profile", "smoke", "--dry-run"]
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    given = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *folders], env=given, capture_output=True, text=True, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    jobs = re.findall(r"^rule (\w+):\n(?: +input: (.*)\n)? +output: (\S+)$", told, re.MULTILINE)
    tunes = {made for rule, _, made in jobs if rule == "fine_tune"}
    needs = {made: set(given.split(", ")) - {""} for rule, given, made in jobs if rule == "notebook"}
    assert set(needs) == {f"notebooks/{known.notebook}.done" for known in load_experiments()}
    assert needs["notebooks/08_ablations.done"] and not needs["notebooks/explore.done"]
    assert set.union(*needs.values()) == tunes, "each for a notebook, and none that is not made"
    assert not list((tmp_path / "runs").glob("workflow/smoke/*.json")), "listed only"
