"""`python -m sinklora.train --config FILE` trains one spec, also under `torchrun` and with DeepSpeed."""

import typer

from sinklora.train.command import train_command

application = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
application.command()(train_command)

if __name__ == "__main__":
    application(prog_name="python -m sinklora.train")
