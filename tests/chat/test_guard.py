"""What the page's server does not answer: foreign hosts and pages, other routes, files by their path."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from sinklora.chat.guard import EVENT, HEADERS, MOST_BYTES, UPLOAD, Guard

HOST = {"host": "127.0.0.1:7860"}
OWN = {**HOST, "origin": "http://127.0.0.1:7860"}


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was sent."""
    body = (await receive()).get("body", b"")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def answered(
    folder: Path, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer, to a request whose body comes in two parts."""
    parts = [body[:10], body[10:]]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    if method == "POST":
        headers = {"content-length": str(len(body)), **headers}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": pairs}
    asyncio.run(Guard(application, folder, 1000)(scope, receive, send))
    begin, *rest = sent
    told = {name.decode(): value.decode() for name, value in begin["headers"]}
    return begin["status"], told, b"".join(message.get("body", b"") for message in rest)


def test_what_the_page_needs_is_answered_and_bound_to_this_machine(tmp_path: Path) -> None:
    for path in (
        "/",
        "/assets/index.js",
        "/theme.css",
        "/gradio_api/queue/data",
        "/gradio_api/heartbeat/ab12",
    ):
        status, headers, _ = answered(tmp_path, "GET", path, HOST)
        assert status == 200 and HEADERS.items() <= headers.items()
    assert answered(tmp_path, "GET", "/", {"host": "localhost"})[0] == 200
    assert answered(tmp_path, "POST", UPLOAD, OWN, b"x" * 900)[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"host": "evil.example:7860"}, 421),
        ("GET", "/", {"host": "127.0.0.1.evil.example"}, 421),
        ("GET", "/", {}, 421),
        ("POST", UPLOAD, {**HOST, "origin": "http://evil.example"}, 403),
        ("POST", UPLOAD, {**HOST, "origin": "null"}, 403),
        ("GET", "/gradio_api/file=/etc/passwd", HOST, 404),
        ("GET", "/gradio_api/file=http://evil.example/", HOST, 404),
        ("GET", "/gradio_api/proxy=http://evil.example/", HOST, 404),
        ("POST", "/gradio_api/run/predict", OWN, 404),
        ("POST", "/gradio_api/call/ask", OWN, 404),
        ("GET", "/gradio_api/info", HOST, 404),
        ("GET", "/gradio_api/runs", HOST, 404),
        ("GET", "/monitoring", HOST, 404),
        ("DELETE", "/", HOST, 404),
        ("POST", UPLOAD, {**OWN, "content-length": "100000"}, 413),
        ("POST", EVENT, {**OWN, "content-length": str(MOST_BYTES + 1)}, 413),
        ("POST", UPLOAD, {**OWN, "content-length": "many"}, 411),
    ],
)
def test_what_it_does_not_need_is_refused(
    method: str, path: str, headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    told, _, words = answered(tmp_path, method, path, headers)
    assert told == status and words.endswith((b".", b"?"))


def test_an_event_names_no_file_but_an_upload(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    (uploads / "a").mkdir(parents=True)
    (uploads / "out").symlink_to(tmp_path)

    def status(path: Any) -> int:
        body = json.dumps({"data": [{"meta": {"_type": "gradio.FileData"}, "path": path}, "words"]}).encode()
        code, _, same = answered(uploads, "POST", EVENT, OWN, body)
        assert (same == body) is (code == 200)
        return code

    assert status(str(uploads / "a" / "book.txt")) == 200
    others = [
        "/etc/passwd",
        "http://evil.example/",
        "book.txt",
        f"{uploads}/../secret",
        f"{uploads}/out/secret",
        f"{uploads}/a\0",
        None,
        7,
    ]
    assert [status(path) for path in others] == [403] * len(others)
    assert answered(uploads, "POST", EVENT, OWN, b"{")[0] == 400
    assert answered(uploads, "POST", EVENT, OWN, b"[" * 100_000)[0] == 400
