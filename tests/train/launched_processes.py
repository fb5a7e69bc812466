"""What each process of `test_launches.py` does: one run, which the first launch makes while others ask.

Its folder is named by the launch and lies beside the runs; what a process says and makes stands there.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import sinklora.train.run
from sinklora.train.run import train
from sinklora.train.trainer import MarkComplete
from tiny_training import spec_in


class HeldAfterCheckpoint(MarkComplete):
    """A MarkComplete that says that there is a checkpoint, and then waits until the run may go on."""

    def on_save(self, args: Any, *arguments: Any, **given: Any) -> None:
        super().on_save(args, *arguments, **given)
        launch = Path(sys.argv[1])
        (launch / "saved").touch()
        while not (launch.parent / "go").exists():
            time.sleep(0.1)


def main(launch: Path) -> None:
    sinklora.train.run.MarkComplete = HeldAfterCheckpoint  # type: ignore[misc]
    place, rank = launch.parent, os.environ["RANK"]
    with (launch / f"said-{rank}").open("w") as said, contextlib.redirect_stderr(said):
        run = train(
            spec_in(place),
            runs=place / "runs",
            cache=place / "cache",
            progress=False,
            wait=launch.name != "refused",
        )
    (launch / f"run-{rank}").write_text(str(run.path))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
