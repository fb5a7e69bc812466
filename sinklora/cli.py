"""The command line `sinklora`: the commands of all rooms. Nothing heavy is imported until one runs."""

from typing import Annotated

import typer

from sinklora.chat.command import chat_command
from sinklora.evaluate.lm_eval_command import EVAL_HELP, PASS_ON, eval_command
from sinklora.evaluate.longbench.commands import commands as longbench_commands
from sinklora.evaluate.step_commands import estimate_command, measure_command
from sinklora.pretrained.command import fetch_command
from sinklora.reproduction.commands import (
    gpu_command,
    report_command,
    reproduce_command,
    verify_command,
)
from sinklora.reproduction.demo.command import demo_command
from sinklora.reproduction.workflow.commands import commands as workflow_commands
from sinklora.train.command import train_command
from sinklora.train.instructions.command import commands as data_commands

application = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        from sinklora.version import __version__

        typer.echo(f"sinklora {__version__}")
        raise typer.Exit


@application.callback()
def sinklora(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Fine-tune language models to long contexts with SF-Attn, and serve them with a bounded cache (H2O)."""


application.command("demo")(demo_command)
application.command("chat")(chat_command)
application.command("fetch")(fetch_command)
application.command("train")(train_command)
application.command("reproduce")(reproduce_command)
application.command("verify")(verify_command)
application.command("estimate")(estimate_command)
application.command("measure")(measure_command)
application.command("eval", help=EVAL_HELP, context_settings=PASS_ON)(eval_command)
application.add_typer(data_commands, name="data")
application.add_typer(longbench_commands, name="longbench")
application.command("gpu")(gpu_command)
application.command("report")(report_command)
application.add_typer(workflow_commands, name="workflow")


def main() -> None:
    """What the console script and `python -m sinklora` run."""
    application(prog_name="sinklora")
