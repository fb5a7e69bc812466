"""The conversation on a terminal; readable, too, where its output goes into a file."""

from __future__ import annotations

import signal
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sinklora.cache.full import Full
from sinklora.cache.policies import CachePolicy, make_policy, needed_budget
from sinklora.chat.cost_words import cost_in_words, read_in_words
from sinklora.chat.documents import Document
from sinklora.chat.engine import Conversation, EvictedError
from sinklora.chat.reading import Stopped
from sinklora.refusals import is_refusal

HELP = """A line is a question. Commands:
  /budget 0.1   keep so much of the document (a fraction, or tokens) from the next question on
  /again 0.4    read the document again, with another budget if one is given; the conversation begins anew
  /policy NAME  read it again under another policy, with its budget behind the name if another is wanted
  /cost         what the conversation has taken so far
  /quit         leave (or end of input)
Ctrl-C stops an answer, or reading."""


# A text's letters are its own: neither markup, nor names of emoji between colons, nor numbers in colours.
AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}


class Terminal:
    """One conversation, line by line: `run` reads lines until they end."""

    def __init__(self, conversation: Conversation, console: Console) -> None:
        self.conversation, self.console = conversation, console

    def read(self, document: Document, policy: CachePolicy | None = None) -> None:
        """Read a document, under another policy if one is given, with a bar where somebody watches."""
        told = f"reading {document.name}"
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        shown = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        with stopped_by_ctrl_c() as stop, shown as bar:
            task = bar.add_task(told, total=1.0)
            self.conversation.read(
                document, policy, progress=lambda share: bar.update(task, completed=share), stop=stop
            )
        self.say(f"{read_in_words(document, self.conversation.cost)}. Ask; /help for more.")

    def run(self, lines: Iterable[str]) -> None:
        """Answer line after line. What cannot be done is said, and the conversation goes on."""
        for line in lines:
            text = line.strip()
            if text == "/quit":
                return
            try:
                self._answer(text)
            except Stopped as stopped:
                self.say(str(stopped))
            except EvictedError as error:
                self.say(f"{error}: /again with that budget")
            except Exception as error:
                if not is_refusal(error):
                    raise
                self.say(" ".join(str(error).split()))

    def _answer(self, text: str) -> None:
        command, _, argument = text.partition(" ")
        if not text:
            return
        if not text.startswith("/"):
            self._ask(text)
        elif command == "/budget":
            self.conversation.change_budget(needed_budget(argument))
            self.say("From the next question on.")
        elif command == "/again" and self.conversation.document is not None:
            other = self.conversation.with_budget(needed_budget(argument)) if argument else None
            self.read(self.conversation.document, other)
        elif command == "/policy" and self.conversation.document is not None:
            self.read(self.conversation.document, self._policy(argument))
        elif command == "/cost":
            if self.conversation.document is not None:
                self.say(read_in_words(self.conversation.document, self.conversation.cost))
            self.say(cost_in_words(self.conversation.cost))
        else:
            self.say(HELP)

    def _policy(self, argument: str) -> CachePolicy:
        """The policy of a name, with the budget behind it or else that of the present one."""
        name, _, budget = argument.partition(" ")
        present = self.conversation.policy
        kept = present.whole_budget if present.bounded else None
        wanted = needed_budget(budget) if budget.strip() else None if name == Full.name else kept
        return make_policy(name, wanted, argument="policy")

    def _ask(self, question: str) -> None:
        with stopped_by_ctrl_c() as stop:
            for piece in self.conversation.ask(question, stop=stop):
                self.console.print(without_controls(piece), end="", **AS_IT_IS)
        self.console.print()
        self.say(cost_in_words(self.conversation.cost))

    def say(self, words: str) -> None:
        """A sentence of the program's own."""
        self.console.print(without_controls(words), style="italic", **AS_IT_IS)


def without_controls(text: str) -> str:
    """A text without what a terminal would obey, such as the sequences that clear it."""
    return "".join(letter for letter in text if letter in "\n\t" or unicodedata.category(letter) != "Cc")


def asked_lines(console: Console) -> Iterator[str]:
    """What is typed, until the input ends; Ctrl-C here says how to leave."""
    while True:
        try:
            yield console.input("[bold]> [/]")
        except KeyboardInterrupt:
            console.print("/quit leaves.")
        except EOFError:
            console.print()
            return


@contextmanager
def stopped_by_ctrl_c() -> Iterator[Event]:
    """An event that Ctrl-C sets, in place of ending the program."""
    stop = Event()

    def set_it(number: int, frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(signal.SIGINT, set_it)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
