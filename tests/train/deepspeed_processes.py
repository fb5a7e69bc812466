"""What each process of `test_deepspeed.py` does: one run with a configuration of DeepSpeed."""

import dataclasses
import os
import sys
from pathlib import Path

from training_processes import base_spec

from sinklora.train.run import train

CONFIGS = Path(__file__).resolve().parents[2] / "configs/deepspeed"


def main(place: Path) -> None:
    stage, sequence_parallel = os.environ["ZERO_STAGE"], int(os.environ["SEQUENCE_PARALLEL"])
    config = str(CONFIGS / f"zero{stage}.json")
    spec = dataclasses.replace(base_spec(place), deepspeed=config, sequence_parallel=sequence_parallel)
    root = f"zero{stage}-{sequence_parallel}"
    train(spec, runs=place / root, cache=place / "cache", progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
