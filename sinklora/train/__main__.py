"""`python -m sinklora.train --config FILE` trains one spec, also under `torchrun` and with DeepSpeed."""

import typer

from sinklora.train.run import main

if __name__ == "__main__":
    typer.run(main)
