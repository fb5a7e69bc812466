"""What each process of `test_rows_in_parts.py` does.

Four hold two rows at once, in two parts each: a whole run, and one that is killed; two go on with that one,
and write down which steps they did.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

from training_processes import KilledAfterCheckpoint, base_spec

import sinklora.train.run
from sinklora.train.run import train
from tiny_training import steps_done


def main(place: Path) -> None:
    spec = dataclasses.replace(base_spec(place), sequence_parallel=2)

    def run(root: str) -> None:
        train(spec, runs=place / root, cache=place / "cache", progress=False)

    if os.environ["WORLD_SIZE"] == "4":
        run("whole")
        sinklora.train.run.MarkComplete = KilledAfterCheckpoint  # type: ignore[misc]
        run("killed")
        return
    with steps_done() as steps:
        run("killed")
    (place / f"steps-{os.environ['RANK']}.json").write_text(json.dumps(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
