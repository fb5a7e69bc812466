"""The page's layout: what stands where, and which session's work each control begins."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from sinklora.cache.policies import POLICIES, CachePolicy, make_policy
from sinklora.chat.engine import Conversation
from sinklora.chat.limits import Limits
from sinklora.chat.marks import ALL_LAYERS
from sinklora.chat.page_html import (
    PUT_ASIDE,
    document_html,
    head_html,
    status_html,
    turns_html,
)
from sinklora.chat.reading import ROOM
from sinklora.chat.session import Session, View
from sinklora.chat.sessions import FullError, Sessions
from sinklora.hf.cache_positions import trained_length

LONGEST, SHORTEST = 1.0, 0.1  # seconds between two pictures of a session at work
HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def chosen_policy(name: str, percent: float) -> CachePolicy:
    """The policy that the controls say. Raises ValueError for what they cannot say."""
    return make_policy(name, float(percent) / 100 if POLICIES[name].bounded else None)


class Page:
    """Layout and controls over `sessions`; `blocks` is what Gradio serves.

    `like`: a conversation such as each session has, on the model of that name, which keeps `percent` of a
    document. `folder` takes the files that visitors upload, until they are read.
    """

    def __init__(self, sessions: Sessions, like: Conversation, *, model: str, percent: int, folder: Path):
        self.sessions, self.folder = sessions, folder
        self._secret = secrets.token_bytes(32)
        self.blocks = gr.Blocks(
            title="Chat about a document", analytics_enabled=False, delete_cache=(600, 600)
        )
        with self.blocks:
            gr.HTML(head_html(model, sessions.limits, _most_tokens(like, sessions.limits)), elem_id="head")
            with gr.Row():
                with gr.Column(scale=5, min_width=320):
                    self._controls(like.policy.name, percent)
                with gr.Column(scale=6, min_width=320):
                    self.layer = gr.Slider(
                        ALL_LAYERS,
                        like.model.config.num_hidden_layers,
                        ALL_LAYERS,
                        step=1,
                        label="Layer (0: all of them)",
                        elem_id="layer",
                        buttons=[],
                    )
                    self.document = gr.HTML(document_html(View(), ALL_LAYERS), elem_id="document")
            self._connect()
        self.blocks.queue(max_size=64, default_concurrency_limit=2 * sessions.limits.sessions)

    def _controls(self, policy: str, percent: int) -> None:
        small: dict[str, Any] = {"size": "md", "min_width": 100}
        with gr.Row():
            self.upload = gr.UploadButton("Open a file", variant="primary", **small)
            self.stop = gr.Button("Stop", elem_id="stop", interactive=False, **small)
            self.again = gr.Button("Read again", elem_id="again", visible=False, **small)
        with gr.Row():
            self.policy = gr.Dropdown(sorted(POLICIES), value=policy, label="Policy", elem_id="policy")
            self.percent = gr.Slider(
                1, 100, percent, step=1, label="Tokens kept (%)", elem_id="percent", buttons=[]
            )
        self.status = gr.HTML(status_html(View()), elem_id="status")
        self.turns = gr.HTML("", elem_id="turns", max_height=480, autoscroll=True)
        self.question = gr.Textbox(
            label="Question", elem_id="question", lines=1, max_lines=4, placeholder="Ask about the document"
        )
        self.ask = gr.Button("Ask", elem_id="ask", interactive=False, size="md")

    def _connect(self) -> None:
        seen = [self.status, self.turns, self.stop, self.again, self.ask, self.upload]
        wish = [self.policy, self.percent]
        begun = [
            self.upload.upload(self._take, [self.upload, *wish], seen, **HIDDEN),
            self.again.click(self._read_again, wish, seen, **HIDDEN),
            self.ask.click(self._ask, [self.question, *wish], [self.question, *seen], **HIDDEN),
            self.question.submit(self._ask, [self.question, *wish], [self.question, *seen], **HIDDEN),
            self.policy.input(self._change, wish, seen, **HIDDEN),
            self.percent.release(self._change, wish, seen, **HIDDEN),
        ]
        for event in begun:
            event.then(self._marked, self.layer, self.document, **HIDDEN)
        self.layer.release(self._marked, self.layer, self.document, **HIDDEN)
        self.stop.click(self._stop, None, None, **HIDDEN)
        self.blocks.load(self._open, None, seen, **HIDDEN)
        self.blocks.unload(self._close)

    # --- what the controls do -------------------------------------------------------------------------------

    def _key(self, request: gr.Request) -> str:
        return hmac.new(self._secret, str(request.session_hash).encode(), hashlib.sha256).hexdigest()

    def _session(self, request: gr.Request) -> Session | None:
        return self.sessions.find(self._key(request))

    def _open(self, request: gr.Request) -> tuple[Any, ...]:
        try:
            return _seen(self.sessions.open(self._key(request)).view)
        except FullError as error:
            return _seen(View(message=str(error)), usable=False)

    def _close(self, request: gr.Request) -> None:
        self.sessions.close(self._key(request))

    def _stop(self, request: gr.Request) -> None:
        if session := self._session(request):
            session.stop()

    def _take(self, path: str, name: str, percent: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        own = Path(tempfile.mkdtemp(dir=self.folder)) / Path(path).name
        shutil.move(path, own)
        session = self._session(request)
        if session is None or not session.read_file(own, chosen_policy(name, percent)):
            shutil.rmtree(own.parent)
        yield from _followed(session)

    def _read_again(self, name: str, percent: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        session = self._session(request)
        if session is not None:
            session.read_again(chosen_policy(name, percent))
        yield from _followed(session)

    def _change(self, name: str, percent: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        session = self._session(request)
        if session is not None:
            session.change(chosen_policy(name, percent))
        yield from _followed(session)

    def _ask(
        self, question: str, name: str, percent: float, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        session = self._session(request)
        begun = session is not None and session.ask(question, chosen_policy(name, percent))
        box = "" if begun else gr.skip()
        for shown in _followed(session):
            yield (box, *shown)
            box = gr.skip()

    def _marked(self, layer: float, request: gr.Request) -> str:
        session = self._session(request)
        return document_html(View() if session is None else session.view, int(layer))


def _most_tokens(like: Conversation, limits: Limits) -> int:
    """Of a document that is read."""
    trained = trained_length(like.model.config)
    if trained is None or like.stream:
        return limits.document_tokens
    return min(limits.document_tokens, trained - trained // ROOM)


def _followed(session: Session | None) -> Iterator[tuple[Any, ...]]:
    """What is seen of a session until it is idle."""
    if session is None:
        yield _seen(View(message=PUT_ASIDE), usable=False)
        return
    view = session.view
    yield _seen(view)
    while view.busy:
        view = session.wait(view, LONGEST)
        if view.busy:  # a fast model changes it many times a second
            time.sleep(SHORTEST)
        yield _seen(view)


def _seen(view: View, usable: bool = True) -> tuple[Any, ...]:
    """Values of all parts that show a session's state, in the order of `Page._connect`."""
    idle = usable and not view.busy
    return (
        status_html(view),
        turns_html(view.turns),
        gr.update(interactive=view.busy),
        gr.update(visible=idle and view.again),
        gr.update(interactive=idle and view.marked is not None),
        gr.update(interactive=idle),
    )
