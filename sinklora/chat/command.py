"""The command `chat`. Nothing heavy is imported until it runs."""

from pathlib import Path
from typing import Annotated

import typer

from sinklora.refusals import told_in_a_sentence


@told_in_a_sentence
def chat_command(
    document: Annotated[Path, typer.Option(help="text, Markdown, HTML, PDF, EPUB or DOCX")],
    budget: Annotated[str, typer.Option(help="a fraction of the document, such as 0.2, or tokens")] = "0.2",
    policy: Annotated[str, typer.Option(help="h2o, replay, streaming, …; full keeps all")] = "h2o",
    base: Annotated[
        str, typer.Option(help="a chat model: a name that fetch lists, a folder, a name on the hub")
    ] = "smollm2-135m",
    stream: Annotated[
        bool, typer.Option(help="read a document that is longer than the model's context, in pieces")
    ] = False,
    answer_tokens: Annotated[int, typer.Option(help="of an answer, at most", min=1)] = 256,
) -> None:
    """Read a document into a cache with a budget and answer questions about it.

    The default model has 135 million parameters: it finds names and numbers near what is asked, and makes up
    what it does not find. Questions are lines; they may be piped in.
    """
    import sys

    from rich.console import Console
    from transformers.utils import logging

    from sinklora.cache.policies import make_policy, parse_budget
    from sinklora.chat.documents import read_document
    from sinklora.chat.engine import Conversation
    from sinklora.chat.reading import Stopped
    from sinklora.chat.terminal import Terminal, asked_lines
    from sinklora.pretrained.loading import load

    chosen = make_policy(policy, None if policy == "full" else parse_budget(budget))
    given = read_document(document)  # before the model, which takes longer
    logging.disable_progress_bar()
    model, tokenizer = load(base)
    terminal = Terminal(
        Conversation(model, tokenizer, chosen, stream=stream, answer_tokens=answer_tokens), Console()
    )
    try:
        terminal.read(given)
    except Stopped:
        raise typer.Exit(130) from None
    terminal.run(asked_lines(terminal.console) if sys.stdin.isatty() else sys.stdin)
