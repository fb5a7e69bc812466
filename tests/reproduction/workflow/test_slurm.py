"""A Slurm of one node: jobs are submitted; one that is killed and one out of memory show at the end."""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm_node import slurm_node, why_not
from workflow_checkout import ended, make_workflow_checkout, start

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why_not()), reason=why_not())]

HUNGRY = "x = b'x' * (6 << 30)"  # more than the job asks for

LONG = "import time\nprint('begun')\ntime.sleep(600)"


@pytest.fixture
def node() -> Iterator[dict[str, str]]:
    """The node; in a short folder, for the names of its sockets."""
    with tempfile.TemporaryDirectory() as folder, slurm_node(Path(folder)) as environment:
        yield environment


def jobs(environment: dict[str, str]) -> dict[str, str]:
    """Running jobs: what they are, by their ids."""
    command = ["squeue", "--noheader", "--states=RUNNING", "--format=%i %k"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return dict(line.split(maxsplit=1) for line in shown.splitlines() if " " in line.strip())


def test_jobs_run_there_and_what_dies_is_visible(tmp_path: Path, node: dict[str, str]) -> None:
    root = make_workflow_checkout(tmp_path / "checkout", **{"21_hungry": [HUNGRY], "22_long": [LONG]})
    process = start(root, "--on", "slurm", environment=node)
    end, long = time.monotonic() + 300, ""
    while not long and time.monotonic() < end and process.poll() is None:
        long = next((number for number, what in jobs(node).items() if "22_long" in what), "")
        time.sleep(1)
    assert long, "it was submitted"
    log = root / "runs" / "workflow" / "smoke" / "logs" / "22_long.txt"
    while time.monotonic() < end and not (log.is_file() and "cell" in log.read_text()):
        time.sleep(1)
    time.sleep(5)
    subprocess.run(["scancel", long], env=node, check=True)
    code, output = ended(process, 400)
    assert code == 1, output
    marks = {path.stem for path in root.glob("runs/workflow/smoke/notebooks/*.done")}
    assert marks == {"05_longbench"}, output
    assert len(list(root.glob("runs/workflow/smoke/fine_tunes/*.done"))) == 2
    for name in ("21_hungry", "22_long"):
        assert f"logs/{name}.txt" in output, "told at the end"
    assert "22_long stopped in code cell 2 of 2: " in log.read_text(), log.read_text()
    assert output.rstrip().splitlines()[-1].startswith("Error: some jobs failed; their logs are in "), output
