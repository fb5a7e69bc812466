"""What each process of `test_deepspeed.py` does: one run under DeepSpeed, killed if told so."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

from torch import nn
from training_processes import KilledAfterCheckpoint, base_spec

import sinklora.train.run
from sinklora.train.run import train
from sinklora.train.trainer import ChunkedLossTrainer

CONFIGS = Path(__file__).resolve().parents[2] / "configs/deepspeed"


class DividedTrainer(ChunkedLossTrainer):
    """Refuses a model whose frozen weights were not divided as they were read."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        whole = [name for name, p in model.named_parameters() if not p.requires_grad and p.numel()]
        assert not whole, f"held as a whole: {whole}"
        super().__init__(model=model, **options)


def main(place: Path) -> None:
    stage, sequence_parallel = os.environ["ZERO_STAGE"], int(os.environ["SEQUENCE_PARALLEL"])
    config = str(CONFIGS / f"zero{stage}.json")
    spec = dataclasses.replace(base_spec(place), deepspeed=config, sequence_parallel=sequence_parallel)
    root = f"zero{stage}-{sequence_parallel}"
    if stage == "3":
        sinklora.train.run.ChunkedLossTrainer = DividedTrainer  # type: ignore[misc]
    if os.environ.get("KILLED"):
        sinklora.train.run.MarkComplete = KilledAfterCheckpoint  # type: ignore[misc]
    train(spec, runs=place / root, cache=place / "cache", progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
