"""The sessions of a page's visitors: apart from each other, few, and dropped when they are old."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from sinklora.chat.engine import Conversation
from sinklora.chat.limits import Limits
from sinklora.chat.session import Session


class FullError(ValueError):
    """There are as many sessions as may be, and all of them are at work."""


class Sessions:
    """Sessions by a key that nobody else knows; one worker does the work of all of them, in turn.

    `make` gives each a conversation of its own, on the model that all share. `clock`: seconds.
    """

    def __init__(
        self, make: Callable[[], Conversation], limits: Limits, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits
        self._make, self._clock = make, clock
        self._worker = ThreadPoolExecutor(1, "model")
        self._held: dict[str, Session] = {}
        self._used: dict[str, float] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._held)

    def open(self, key: str) -> Session:
        """The session of a key; a new one takes the place of that which was idle longest where all are taken.

        Raises FullError where no session is idle.
        """
        self.sweep()
        with self._lock:
            if key not in self._held:
                if len(self._held) >= self.limits.sessions:
                    self._drop(self._idle_longest())
                self._held[key] = Session(self._make(), self._worker, self.limits)
            self._used[key] = self._clock()
            return self._held[key]

    def find(self, key: str) -> Session | None:
        """The session of a key, if it is still kept."""
        self.sweep()
        with self._lock:
            if key in self._held:
                self._used[key] = self._clock()
            return self._held.get(key)

    def close(self, key: str) -> None:
        """End what a session does, and forget it."""
        with self._lock:
            if key in self._held:
                self._drop(key)

    def sweep(self) -> None:
        """Forget the sessions that were not used for long; those at work are used."""
        with self._lock:
            now = self._clock()
            for key, session in list(self._held.items()):
                if session.view.busy:
                    self._used[key] = now
                elif now - self._used[key] > 60 * self.limits.minutes:
                    self._drop(key)

    def end(self) -> None:
        """Forget all sessions, and let the worker end."""
        for key in list(self._held):
            self.close(key)
        self._worker.shutdown(wait=True)

    def _idle_longest(self) -> str:
        idle = [key for key, session in self._held.items() if not session.view.busy]
        if not idle:
            raise FullError(
                f"All {self.limits.sessions} conversations that are kept here are at work: reload this page "
                "when one of them is done."
            )
        return min(idle, key=self._used.__getitem__)

    def _drop(self, key: str) -> None:
        self._held.pop(key).stop()
        del self._used[key]
