"""DeepSpeed on two processes of a CPU: the same losses as one process, and a whole adapter at the end.

Runs where DeepSpeed is installed (`pip install deepspeed` will do; g++ and ninja build its extension).
"""

import importlib.util
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file
from training_processes import STEPS, base_spec

from helpers import assert_close
from several_processes import run_together
from sinklora.records.runs import RunDirectory
from sinklora.train.run import train
from tiny_training import make_place

SCRIPT = Path(__file__).with_name("deepspeed_processes.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("deepspeed"))


@pytest.fixture(scope="module")
def alone(place: Path) -> RunDirectory:
    return train(base_spec(place), runs=place / "alone", cache=place / "cache", progress=False)


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
    losses = pd.read_csv(run / "loss.csv").loss
    assert len(losses) == STEPS
    assert_close(losses.to_numpy(), pd.read_csv(alone.path / "loss.csv").loss.to_numpy(), atol=1e-4)
    found, expected = (load_file(path / "adapter/adapter_model.safetensors") for path in (run, alone.path))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, atol=1e-4)
