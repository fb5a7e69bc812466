"""The command `demo`. Nothing heavy is imported until it runs."""

from pathlib import Path
from typing import Annotated

import typer

from sinklora.refusals import told_in_a_sentence


@told_in_a_sentence
def demo_command(
    budget: Annotated[str, typer.Option(help="a fraction of the prompt, such as 0.2, or tokens")] = "0.2",
    policy: Annotated[
        str, typer.Option(help="h2o, local, streaming, tova, snapkv, …; a wrong one lists all")
    ] = "h2o",
    text: Annotated[
        Path | None, typer.Option(help="a text file to read, in place of a chapter of Alice in Wonderland")
    ] = None,
    base: Annotated[
        str, typer.Option(help="the model; data/base, in a clone, where none can be downloaded")
    ] = "smollm2-135m",
    lines: Annotated[int, typer.Option(help="of the page that are shown; 0: all", min=0)] = 18,
    save: Annotated[Path | None, typer.Option(help="write what is shown to a picture as well (.svg)")] = None,
) -> None:
    """Show in a minute what a cache with a budget keeps of a page, and what that costs and saves.

    The page is read by a small language model through its full cache and through bounded ones.
    """
    from transformers.utils import logging

    from sinklora.reproduction.demo.run import DemoRequest, show_demo

    logging.disable_progress_bar()  # the screen has one of its own
    show_demo(DemoRequest(budget=budget, policy=policy, text=text, base=base, lines=lines, save=save))
