"""The page on a port of this machine, and nowhere else."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Annotated, Any

from pydantic import Field

from sinklora.cache.policies import CachePolicy
from sinklora.chat.engine import Conversation
from sinklora.chat.guard import Guard
from sinklora.chat.limits import Limits
from sinklora.chat.sessions import Sessions
from sinklora.records.checks import check_value

ADDRESS = "127.0.0.1"
SWEEP = 30.0  # seconds between two looks for sessions that are too old
NEEDED = 'the page needs Gradio: pip install "sinklora[chat]"'


def check_page(policy: CachePolicy, port: int) -> int:
    """The percentage of a document that a policy keeps, where a page can be served at all.

    Raises ImportError without Gradio, ValueError for a port that is in use and for a budget in tokens, or
    one that is no whole per cent, between which the page's slider has no place.
    """
    percent = _whole_percent(policy.budget) if policy.bounded else 100
    free_port(port)
    if importlib.util.find_spec("gradio") is None:
        raise ImportError(NEEDED)
    return percent


def _whole_percent(budget: float | int) -> int:
    percent = round(100 * budget)
    if not isinstance(budget, float) or percent < 1 or abs(100 * budget - percent) > 1e-9:
        raise ValueError(
            f"budget={budget!r}: the page takes whole per cent of a document, 0.01 to 1.0, such as 0.2"
        )
    return percent


@contextmanager
def served(
    make: Callable[[], Conversation], limits: Limits, *, model: str, port: int, percent: int
) -> Iterator[tuple[str, Sessions]]:
    """The page, while the context lasts: its address, and the sessions.

    `make` gives each session its conversation, in which `percent` of a document are kept; `port` 0 takes any
    that is free. Gradio reads settings from the environment when it is imported: do not import it before.
    Raises ImportError without it, ValueError for a port that is in use and for a model without a usable chat
    template or a fast tokenizer.
    """
    port = free_port(port)
    first = make()
    if not first.tokenizer.is_fast:
        raise ValueError(
            f"base={model!r}: its tokenizer does not say where tokens stand in a text; give another"
        )
    sessions = Sessions(make, limits)
    with tempfile.TemporaryDirectory(prefix="sinklora-page-") as folder:
        uploads, opened = Path(folder) / "uploads", Path(folder) / "opened"
        uploads.mkdir()
        opened.mkdir()
        os.environ.update(
            GRADIO_TEMP_DIR=str(uploads), GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1"
        )
        from sinklora.chat.page import Page

        page = Page(sessions, first, model=model, percent=percent, folder=opened).blocks
        try:
            yield _launch(page, port, uploads, limits), sessions
        finally:
            page.close(verbose=False)
            sessions.end()


def _launch(page: Any, port: int, uploads: Path, limits: Limits) -> str:
    import gradio as gr
    from starlette.middleware import Middleware

    from sinklora.chat.page_html import CSS

    guard = Middleware(Guard, uploads=uploads, upload_bytes=limits.document_bytes)
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    _, address, _ = page.launch(
        server_name=ADDRESS,
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=limits.document_bytes,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        num_workers=0,
        strict_cors=True,
        app_kwargs={"middleware": [guard], "openapi_url": None},
        theme=gr.themes.Base(font=sans, font_mono=mono),
        css=CSS,
        state_session_capacity=limits.sessions,
    )
    return str(address)


def free_port(port: int) -> int:
    """The port itself, or for 0 any; ValueError where it is in use or no port."""
    import socket

    check_value("port", port, Annotated[int, Field(ge=0, lt=2**16)])
    with socket.socket() as probe:
        if os.name == "posix":  # as the server does: connections that a page has left behind take no port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError as error:
            raise ValueError(f"port={port}: is in use, or not allowed; give another, or 0 for any") from error
        return int(probe.getsockname()[1])


def serve_until_interrupted(sessions: Sessions) -> None:
    """Wait for Ctrl-C, or another signal to end; meanwhile forget sessions that are too old."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        while not Event().wait(SWEEP):
            sessions.sweep()
    except KeyboardInterrupt:
        return
