"""One visitor's document and conversation: its work is done by a worker, one thing at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition, Event

import torch

from sinklora.cache.policies import CachePolicy
from sinklora.chat.cost_words import cost_in_words, read_in_words
from sinklora.chat.documents import Document, read_document
from sinklora.chat.engine import Conversation, EvictedError
from sinklora.chat.limits import Limits
from sinklora.chat.marks import MarkedText, document_pieces, marked_text
from sinklora.chat.reading import Stopped
from sinklora.hf.token_text import TokenPieces
from sinklora.refusals import is_refusal

IDLE, WAITING, OPENING, READING, WRITING = "idle", "waiting", "opening", "reading", "writing"
FAULT = "That failed, and the program's log says how. Read the document again, or open another."
FAILED = "failed half-way"


@dataclass(frozen=True)
class Turn:
    """A question and its answer, as far as it is written; `cost` once it is, or FAILED."""

    question: str
    answer: str = ""
    cost: str = ""


@dataclass(frozen=True)
class View:
    """What a visitor sees of a session at one moment.

    `share` of the document that is read; `message`: a sentence of the program's own; `again`: what is wished
    needs the document to be read again.
    """

    phase: str = IDLE
    share: float = 0.0
    message: str = ""
    again: bool = False
    document: str = ""
    turns: tuple[Turn, ...] = ()
    marked: MarkedText | None = None

    @property
    def busy(self) -> bool:
        """Whether something is being done, or waits to be."""
        return self.phase != IDLE


class Session:
    """A conversation that a visitor has: `read_file`, `read_again`, `ask` and `change` begin something that
    `worker` does, and `view` tells how it goes. Each says whether it was begun: not while something else is.

    What goes wrong is a sentence in the view, and the session lives on.
    """

    def __init__(self, talk: Conversation, worker: Executor, limits: Limits) -> None:
        self.limits = limits
        self._talk, self._worker = talk, worker
        self._document: Document | None = None  # the one that was opened last
        self._pieces: TokenPieces | None = None  # of the one that was read last
        self._view, self._changed = View(), Condition()
        self._stop, self._stopped = Event(), False  # the event is set, too, when an answer has ended

    # --- what a visitor sees and does -----------------------------------------------------------------------

    @property
    def view(self) -> View:
        """What is to be seen now."""
        return self._view

    def wait(self, seen: View, seconds: float) -> View:
        """What is to be seen once it is no longer what was `seen`, or so many seconds have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._view is not seen, seconds)
            return self._view

    def read_file(self, path: Path, policy: CachePolicy) -> bool:
        """Read a file in place of what was read before; it is removed, and its empty folder."""

        def work(stop: Event) -> None:
            self._show(phase=OPENING)
            try:
                document = read_document(path, most_bytes=self.limits.document_bytes)
            finally:
                _remove(path)
            self._read(document, policy, stop)

        return self._begin(work)

    def read_again(self, policy: CachePolicy) -> bool:
        """Read the document that was opened last under another policy; the conversation begins anew."""

        def work(stop: Event) -> None:
            if self._document is None:
                raise ValueError("document=None: open one first")
            self._read(self._document, policy, stop)

        return self._begin(work)

    def ask(self, question: str, policy: CachePolicy) -> bool:
        """Ask about the document; a smaller budget of the policy counts from now on."""

        def work(stop: Event) -> None:
            most = self.limits.question_characters
            if len(question) > most:
                raise ValueError(f"question: has {len(question)} characters; ask in at most {most}")
            self._apply(policy)
            self._answer(question.strip(), stop)

        return self._begin(work)

    def change(self, policy: CachePolicy) -> bool:
        """Have another policy or budget, as far as that can be without reading again."""
        return self._begin(lambda stop: self._apply(policy))

    def stop(self) -> None:
        """End what is being done: an answer at its next token, reading at the next layer."""
        self._stopped = True
        self._stop.set()

    # --- what the worker does -------------------------------------------------------------------------------

    def _begin(self, work: Callable[[Event], None]) -> bool:
        with self._changed:
            if self._view.busy:
                return False
            self._stop, self._stopped = Event(), False
            self._show(phase=WAITING, share=0.0, message="", again=False)
            self._worker.submit(self._run, work, self._stop)
        return True

    def _run(self, work: Callable[[Event], None], stop: Event) -> None:
        try:
            if stop.is_set():  # while it waited for another's work
                raise Stopped
            work(stop)
        except Stopped as stopped:
            self._show(message=str(stopped))
        except (MemoryError, torch.OutOfMemoryError):
            self._show(message="There is not enough memory; take a smaller budget, or a shorter text.")
        except Exception as error:
            if is_refusal(error):
                self._show(message=" ".join(str(error).split()))
            else:
                logging.getLogger(__name__).exception("a session's work failed")
                self._show(message=FAULT, again=self._document is not None)
        finally:
            unread = self._document is not None and self._talk.cache is None
            self._show(phase=IDLE, again=self._view.again or unread)

    def _read(self, document: Document, policy: CachePolicy, stop: Event) -> None:
        pieces = document_pieces(self._talk.tokenizer, document, self.limits.document_tokens)
        self._document = document
        self._show(phase=READING, share=0.0)
        try:
            if stop.is_set():
                raise Stopped
            self._talk.read(document, policy, progress=lambda share: self._show(share=share), stop=stop)
        except BaseException:
            self._show(again=True)  # perhaps with another policy, or budget
            raise
        self._pieces = pieces
        told = f"{read_in_words(document, self._talk.cost)}."
        self._show(document=document.name, turns=(), message=told, marked=self._marked())

    def _answer(self, question: str, stop: Event) -> None:
        pieces = self._talk.ask(question, stop=stop)
        turns, turn = self._view.turns, Turn(question)
        self._show(phase=WRITING, turns=(*turns, turn))
        try:
            for piece in pieces:
                turn = replace(turn, answer=turn.answer + piece)
                self._show(turns=(*turns, turn))
        except BaseException:  # which leaves no cache to ask, or to mark
            self._show(turns=(*turns, replace(turn, cost=FAILED)), marked=None)
            raise
        told = cost_in_words(self._talk.cost) + ("; stopped" if self._stopped else "")
        self._show(turns=(*turns, replace(turn, cost=told)), marked=self._marked())

    def _apply(self, policy: CachePolicy) -> None:
        """What of a policy can be had without reading again; of the rest, say that it cannot."""
        now = self._talk.policy
        if self._talk.cache is None or policy == now:
            return
        if type(policy) is not type(now):
            told = f"The document was read with {now.name}: read it again to have {policy.name}."
            self._show(message=told, again=True)
            return
        try:
            self._talk.change_budget(policy.budget)
            self._show(message="From the next question on.")
        except EvictedError as error:
            self._show(message=str(error), again=True)

    def _marked(self) -> MarkedText | None:
        return None if self._pieces is None else marked_text(self._talk, self._pieces)

    def _show(self, **changes: object) -> None:
        with self._changed:
            self._view = replace(self._view, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
        path.parent.rmdir()
