"""The command `chat`. Nothing heavy is imported until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sinklora.refusals import told_in_a_sentence

if TYPE_CHECKING:
    from sinklora.cache.policies import CachePolicy

ModelNames = tuple[str, str | None, str | None]  # base, adapter, template


@told_in_a_sentence
def chat_command(
    document: Annotated[
        Path | None, typer.Option(help="text, Markdown, HTML, PDF, EPUB or DOCX; not with --page")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="a fraction of the document, or tokens; left out: 0.2, of full none")
    ] = None,
    policy: Annotated[str, typer.Option(help="h2o, replay, streaming, …; full keeps all")] = "h2o",
    base: Annotated[
        str, typer.Option(help="a chat model: a name that fetch lists, a folder, a name on the hub")
    ] = "smollm2-135m",
    adapter: Annotated[
        str | None, typer.Option(help="one that belongs to the base: a folder, or a name on the hub")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="a chat template by name, for a model that has none of its own")
    ] = None,
    stream: Annotated[
        bool, typer.Option(help="read a document that is longer than the model's context, in pieces")
    ] = False,
    answer_tokens: Annotated[int, typer.Option(help="of an answer, at most", min=1)] = 256,
    page: Annotated[
        bool, typer.Option("--page", help="in the browser, where documents are opened and kept tokens shown")
    ] = False,
    port: Annotated[int, typer.Option(help="of the page, on this machine; 0: any", min=0, max=65535)] = 7860,
) -> None:
    """Read a document into a cache with a budget and answer questions about it.

    The default model has 135 million parameters: it finds names and numbers near what is asked, and makes up
    what it does not find. Questions are lines; they may be piped in. --page has all of it in the browser.
    """
    from sinklora.cache.policies import make_policy, parse_budget

    amount = parse_budget(budget) if budget else None if policy == "full" else 0.2
    chosen = make_policy(policy, amount, argument="policy")
    settings = {"stream": stream, "answer_tokens": answer_tokens}
    if page:
        _serve(document, chosen, (base, adapter, template), port, settings)
    else:
        _talk(document, chosen, (base, adapter, template), settings)


def _talk(document: Path | None, policy: CachePolicy, names: ModelNames, settings: dict[str, Any]) -> None:
    import sys

    from rich.console import Console
    from transformers.utils import logging

    from sinklora.chat.documents import read_document
    from sinklora.chat.engine import Conversation
    from sinklora.chat.loading import chat_model
    from sinklora.chat.reading import Stopped
    from sinklora.chat.terminal import Terminal, asked_lines

    if document is None:
        raise ValueError("document: give one (--document FILE), or open one in the browser (--page)")
    contents = read_document(document)  # before the model, which takes longer
    logging.disable_progress_bar()
    model, tokenizer = chat_model(*names)
    terminal = Terminal(Conversation(model, tokenizer, policy, **settings), Console())
    try:
        terminal.read(contents)
    except Stopped:
        raise typer.Exit(130) from None
    terminal.run(asked_lines(terminal.console) if sys.stdin.isatty() else sys.stdin)


def _serve(
    document: Path | None, policy: CachePolicy, names: ModelNames, port: int, settings: dict[str, Any]
) -> None:
    from transformers.utils import logging

    from sinklora.chat.engine import Conversation
    from sinklora.chat.limits import Limits
    from sinklora.chat.loading import chat_model
    from sinklora.chat.page_server import check_page, serve_until_interrupted, served

    if document is not None:
        raise ValueError(f"document={str(document)!r}: leave it out; documents are opened on the page")
    percent = check_page(policy, port)  # before the model
    logging.disable_progress_bar()
    model, tokenizer = chat_model(*names)

    def make() -> Conversation:
        return Conversation(model, tokenizer, policy, **settings)

    with served(make, Limits(), model=names[0], port=port, percent=percent) as (
        address,
        sessions,
    ):
        typer.echo(f"The page is at {address} on this machine alone; Ctrl-C ends it.")
        serve_until_interrupted(sessions)
