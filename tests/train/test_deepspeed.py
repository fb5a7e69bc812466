"""DeepSpeed on two processes of a CPU: the same losses as one process, and a whole adapter at the end.

Runs where DeepSpeed is installed (`pip install deepspeed` will do; g++ and ninja build its extension).
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from training_processes import STEPS, base_spec

from several_processes import run_together
from sinklora.records.runs import RunDirectory
from tiny_training import assert_same_training, make_place, steps_behind, train_alone

SCRIPT = Path(__file__).with_name("deepspeed_processes.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("deepspeed"))


@pytest.fixture(scope="module")
def alone(place: Path) -> RunDirectory:
    return train_alone(place, base_spec(place))


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

STAGES = pytest.mark.parametrize("stage", [2, 3])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """A function that tells the processes which stage, and how many hold a row."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # ninja

    def tell(stage: int, sequence_parallel: int) -> None:
        monkeypatch.setenv("ZERO_STAGE", str(stage))
        monkeypatch.setenv("SEQUENCE_PARALLEL", str(sequence_parallel))

    return tell


@pytest.mark.parametrize("sequence_parallel", [1, 2], ids=["rows", "parts of rows"])
@STAGES
def test_zero_trains_what_one_process_trains(
    stage: int, sequence_parallel: int, place: Path, alone: RunDirectory, told: Callable[[int, int], None]
) -> None:
    told(stage, sequence_parallel)
    run_together(SCRIPT, 2, place)
    [run] = (path.parent for path in place.glob(f"zero{stage}-{sequence_parallel}/*/finished.json"))
    assert len(pd.read_csv(run / "loss.csv")) == STEPS
    assert_same_training(run, alone.path, weights=1e-4)


@STAGES
def test_two_go_on_where_one_of_two_was_killed(
    stage: int, alone: RunDirectory, told: Callable[[int, int], None], tmp_path: Path
) -> None:
    """From the optimizer's and the model's parts, which each has written; one process alone is refused."""
    told(stage, 1)
    place = make_place(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KILLED", "1")
        run_together(SCRIPT, 2, place, fails=True)
    [work] = place.glob(f"zero{stage}-1/*/checkpoints")
    assert steps_behind(work.parent) == 8
    refused = run_together(SCRIPT, 1, place, fails=True)
    assert "used a DP world size of 2 but the current world size is 1" in refused, refused
    run_together(SCRIPT, 2, place)
    [run] = (path.parent for path in place.glob(f"zero{stage}-1/*/finished.json"))
    assert len(pd.read_csv(run / "loss.csv")) == STEPS
    assert_same_training(run, alone.path, weights=1e-4)
