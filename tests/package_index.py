"""A package index on this machine that pip talks to over HTTP, and that counts what it hands out."""

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class PackageIndex:
    """Serves a wheel for each name of a project, in a `with` block; files may be cached for ever, as on PyPI.

    `endless`: a project whose wheel never arrives; `hangs` is set when somebody has asked for it. `loaded`:
    the files that were asked for, in order. `pip`: the options that let pip use this index.
    """

    def __init__(self, wheels: Mapping[str, Path], endless: str = "") -> None:
        self.wheels, self.endless = dict(wheels), endless
        self.loaded: list[str] = []
        self.hangs, self._over = threading.Event(), threading.Event()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def pip(self) -> tuple[str, ...]:
        host, port = self._server.server_address[:2]
        url = f"http://{host!s}:{port}/simple/"
        return ("--index-url", url, "--trusted-host", f"{host!s}:{port}")

    def __enter__(self) -> "PackageIndex":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """The page of a project, or a file."""
        folder, _, name = request.path.strip("/").partition("/")
        if folder == "simple":
            wheel = self.wheels.get(name)
            file = wheel.name if wheel else f"{name}-1.0-py3-none-any.whl"
            page = f"<html><body><a href='/files/{file}'>{file}</a></body></html>"
            send(request, page.encode(), "text/html", "no-store")
            return
        if name.startswith(f"{self.endless}-"):
            self.hangs.set()
            self._over.wait()
            return
        self.loaded.append(name)
        [wheel] = [path for path in self.wheels.values() if path.name == name]
        send(request, wheel.read_bytes(), "application/octet-stream", "max-age=365000000, immutable, public")


def send(request: BaseHTTPRequestHandler, body: bytes, kind: str, caching: str) -> None:
    """A whole answer."""
    request.send_response(200)
    for name, value in (("Content-Type", kind), ("Content-Length", len(body)), ("Cache-Control", caching)):
        request.send_header(name, str(value))
    request.end_headers()
    request.wfile.write(body)
