"""What each process of `test_deepspeed.py` does: one run under DeepSpeed, killed if told so."""

import dataclasses
import os
import sys
from pathlib import Path

from training_processes import KilledAfterCheckpoint, base_spec

import sinklora.train.run
from sinklora.train.run import train

CONFIGS = Path(__file__).resolve().parents[2] / "configs/deepspeed"


def main(place: Path) -> None:
    stage, sequence_parallel = os.environ["ZERO_STAGE"], int(os.environ["SEQUENCE_PARALLEL"])
    config = str(CONFIGS / f"zero{stage}.json")
    spec = dataclasses.replace(base_spec(place), deepspeed=config, sequence_parallel=sequence_parallel)
    root = f"zero{stage}-{sequence_parallel}"
    if os.environ.get("KILLED"):
        sinklora.train.run.MarkComplete = KilledAfterCheckpoint  # type: ignore[misc]
    train(spec, runs=place / root, cache=place / "cache", progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
