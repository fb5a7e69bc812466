"""DeepSpeed on two processes of a CPU: the same losses as one process, and a whole adapter at the end.

Runs where DeepSpeed is installed (`pip install 'sinklora[gpu]'`); it builds an extension with g++ and ninja.
"""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from helpers import assert_close
from sinklora.train.run import train
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec

SPEC = TrainSpec(
    corpus=CorpusSpec(min_characters=4_000, total_characters=300_000),
    context=1024,
    steps=3,
    batch_size=2,
    micro_batch_size=1,
    learning_rate=3e-3,
    warmup_steps=1,
    bf16=False,
)


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
@pytest.mark.parametrize("stage", [2, 3])
def test_zero_trains_what_one_process_trains(stage: int, tmp_path: Path) -> None:
    alone = train(SPEC, runs=tmp_path / "alone", cache=tmp_path / "cache", progress=False)
    values = dataclasses.asdict(
        dataclasses.replace(SPEC, deepspeed=str(Path(f"configs/deepspeed/zero{stage}.json").resolve()))
    )
    config = tmp_path / "spec.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "sinklora.train"]
    environment = {
        **os.environ,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "SINKLORA_CACHE": str(tmp_path / "cache"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # ninja
    }
    subprocess.run(
        [*command, "--config", str(config), "--runs", str(tmp_path / "two")], check=True, env=environment
    )
    [run] = (tmp_path / "two").glob("sf-1024-*")
    assert_close(
        pd.read_csv(run / "loss.csv").loss.to_numpy(),
        pd.read_csv(alone.path / "loss.csv").loss.to_numpy(),
        atol=1e-3,
    )
    found, expected = (load_file(path / "adapter/adapter_model.safetensors") for path in (run, alone.path))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, atol=1e-3)
