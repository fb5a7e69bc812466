"""DeepSpeed on two processes of a CPU: the same losses as one process, and a whole adapter at the end.

Runs where DeepSpeed is installed (`pip install deepspeed` will do; g++ and ninja build its extension).
"""

import importlib.util
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from training_processes import STEPS, base_spec

from several_processes import run_together
from sinklora.records.runs import RunDirectory
from tiny_training import assert_same_training, make_place, train_alone

SCRIPT = Path(__file__).with_name("deepspeed_processes.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("deepspeed"))


@pytest.fixture(scope="module")
def alone(place: Path) -> RunDirectory:
    return train_alone(place, base_spec(place))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("sequence_parallel", [1, 2], ids=["rows", "parts of rows"])
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_what_one_process_trains(
    stage: int, sequence_parallel: int, place: Path, alone: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("ZERO_STAGE", str(stage))
    monkeypatch.setenv("SEQUENCE_PARALLEL", str(sequence_parallel))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # ninja
    run_together(SCRIPT, 2, place)
    [run] = (path.parent for path in place.glob(f"zero{stage}-{sequence_parallel}/*/finished.json"))
    assert len(pd.read_csv(run / "loss.csv")) == STEPS
    assert_same_training(run, alone.path, weights=1e-4)
