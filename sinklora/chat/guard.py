"""What the page's server answers at all: this machine's browser, its own routes, no paths from outside."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

HOSTS = ("127.0.0.1", "localhost")
MOST_BYTES = 2**18  # of what is sent with an event
UPLOAD, EVENT = "/gradio_api/upload", "/gradio_api/queue/join"

# All that the page itself asks for. Not among it: files by their path or address, calls by name, descriptions
# of the interface, records of runs.
ROUTES = {
    "GET": re.compile(
        r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/pwa_icon.*|/(static|assets|svelte)/.*"
        r"|/gradio_api/(app_id|startup-events|upload_progress|queue/data|heartbeat/\w+|theme\.css)/?"
    ),
    "POST": re.compile(rf"({UPLOAD}|{EVENT}|/gradio_api/(cancel|reset))/?"),
}
ROUTES["HEAD"] = ROUTES["GET"]

# The page loads nothing from elsewhere, sends nothing there, and is not shown inside another page.
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'self'; object-src 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """An ASGI application in front of another: refuses what the page does not need.

    That is another host's name (a foreign page that was given this machine's address), requests sent by other
    pages, other routes, larger bodies than `upload_bytes`, and events that name a file outside `uploads`.
    """

    def __init__(self, app: Application, uploads: Path, upload_bytes: int) -> None:
        self.app, self.uploads, self.upload_bytes = app, uploads.resolve(), upload_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        refused = self.refusal(scope)
        if refused is None and scope["path"].rstrip("/") == EVENT:
            body = await _whole_body(receive)
            refused = self.refusal_of_event(body)
            receive = _again(body, receive)
        if refused is not None:
            await _refuse(*refused, send)
            return
        await self.app(scope, receive, _with_headers(send))

    def refusal(self, scope: Message) -> tuple[int, str] | None:
        """Why a request is not answered: a status and a sentence; None if it is."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if host.rpartition(":")[0] not in HOSTS and host not in HOSTS:
            return 421, "This page is for this machine alone."
        if headers.get("origin", f"http://{host}") != f"http://{host}":
            return 403, "Another page sent this."
        known = ROUTES.get(scope["method"])
        if known is None or not known.fullmatch(scope["path"]):
            return 404, "There is nothing here."
        if scope["method"] == "POST":
            length = headers.get("content-length", "")
            most = self.upload_bytes + 2**16 if scope["path"].startswith(UPLOAD) else MOST_BYTES
            if not length.isdecimal():
                return 411, "How long is it?"
            if int(length) > most:
                return 413, f"That is larger than {most / 2**20:.1f} MiB; cut it."
        return None

    def refusal_of_event(self, body: bytes) -> tuple[int, str] | None:
        """The same for what is sent with an event."""
        try:
            named = list(_paths(json.loads(body)))
        except (ValueError, RecursionError):
            return 400, "That is not JSON."
        if not all(isinstance(path, str) and self._is_upload(path) for path in named):
            return 403, "Only a file that was uploaded here can be read."
        return None

    def _is_upload(self, path: str) -> bool:
        return (
            "\0" not in path
            and Path(path).is_absolute()
            and Path(path).resolve().is_relative_to(self.uploads)
        )


def _paths(value: Any) -> Iterator[Any]:
    """Whatever is called a path, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "path":
                yield inner
            yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)


async def _whole_body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was received already, and then what comes."""
    left = [body]

    async def receive_again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return receive_again


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return send_with_headers


async def _refuse(status: int, words: str, send: Send) -> None:
    kind = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": kind})
    await send({"type": "http.response.body", "body": words.encode()})
