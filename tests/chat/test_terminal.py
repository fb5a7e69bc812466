"""The conversation on a terminal: what is said, what Ctrl-C does, and what is read from a pipe."""

import io
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from chat_models import LONG_TEXT, TEMPLATE, chat_base
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import make_policy, parse_budget
from sinklora.chat.documents import Document
from sinklora.chat.engine import Conversation
from sinklora.chat.page_server import ADDRESS, check_page, free_port
from sinklora.chat.terminal import HELP, Terminal, stopped_by_ctrl_c
from sinklora.cli import application

DOCUMENT = Document("code.txt", LONG_TEXT[:400])


def run_lines(lines: list[str], budget: float = 0.5) -> str:
    model, tokenizer = chat_base()
    screen = io.StringIO()
    terminal = Terminal(
        Conversation(model, tokenizer, H2O(budget), answer_tokens=5), Console(file=screen, width=80)
    )
    terminal.read(DOCUMENT)
    terminal.run(lines)
    return screen.getvalue()


def test_no_letter_of_an_answer_or_a_name_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of emoji between colons, and what looks like markup."""
    answer, name = "key:id:value is 1:100:3, [bold]x[/bold], urn:new:7.", "report[draft] :id:.txt"
    monkeypatch.setattr(Conversation, "ask", lambda *_, **__: iter([answer[:8], answer[8:]]))
    model, tokenizer = chat_base()
    screen = io.StringIO()
    console = Console(file=screen, width=200, force_terminal=True)
    terminal = Terminal(Conversation(model, tokenizer, H2O(0.5)), console)
    terminal.read(Document(name, LONG_TEXT[:200]))
    terminal.run(["What is it?"])
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert answer in shown and f"{name}: " in shown and f"reading {name}" in shown


def test_lines_are_questions_and_commands() -> None:
    model, tokenizer = chat_base()
    talk = Conversation(model, tokenizer, H2O(0.5), answer_tokens=5)
    talk.read(DOCUMENT)
    answers = ["".join(talk.ask(question)) for question in ("def name_3", "And?")]
    shown = run_lines(["def name_3", "", "And?", "/cost", "/quit", "never asked"]).splitlines()
    assert shown[0].startswith(f"code.txt: {talk.cost.read_tokens} tokens read in ")
    text = "\n".join(shown)
    assert text.index(answers[0]) < text.rindex(answers[1]) and text.count("tokens/s; the cache holds") == 3
    assert len([line for line in shown if "tokens/s" in line]) == 3, "no line is broken"


def test_the_budget_is_changed_and_what_is_gone_is_said() -> None:
    shown = run_lines(
        ["/budget 0.2", "def name_3", "/budget 0.4", "/again 0.4", "/budget", "/budget x", "/what"]
    )
    assert "From the next question on." in shown
    assert "those it evicted are gone; read the document again" in shown
    assert shown.count("code.txt: ") == 2
    assert "budget='': expected a fraction" in shown and "budget='x': expected a fraction" in shown
    assert HELP.splitlines()[0] in shown


class PressesCtrlC(io.StringIO):
    """A screen whose reader presses Ctrl-C once it shows a word."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def write(self, text: str) -> int:
        if self.word and self.word in text:
            self.word = ""
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(text)


def test_reading_again_changes_the_budget_only_where_it_comes_to_its_end() -> None:
    model, tokenizer = chat_base()
    talk = Conversation(model, tokenizer, H2O(0.5), stream=True, answer_tokens=5)
    screen = PressesCtrlC("")
    terminal = Terminal(talk, Console(file=screen, width=80, force_terminal=True))
    terminal.read(Document("long.txt", LONG_TEXT))
    terminal.run(["/again 0.99"])  # of which a stream would leave no room
    assert "leaves no room" in screen.getvalue() and talk.policy == H2O(0.5)
    screen.word = "reading"
    terminal.run(["/again 0.3"])
    assert "Stopped; nothing was read." in screen.getvalue() and talk.policy == H2O(0.5)
    terminal.run(["def name_3", "/again 0.4"])
    assert talk.policy == H2O(0.4)


def test_another_policy_is_read_again() -> None:
    shown = run_lines(
        ["/policy streaming", "/policy local 40", "/policy full", "/policy none", "/policy h2o 2.5"]
    )
    assert shown.count("tokens read in") == 4
    assert "policy='none': expected one of" in shown and "budget=2.5" in shown
    model, tokenizer = chat_base()
    terminal = Terminal(Conversation(model, tokenizer, H2O(0.5)), Console(file=io.StringIO()))
    terminal.read(DOCUMENT)
    terminal.run(["/policy streaming"])
    assert terminal.conversation.policy == make_policy("streaming", 0.5)


def test_what_was_waited_for_is_said() -> None:
    shown = run_lines(["What?", "/cost"])
    assert len(re.findall(r"first token after \d+\.\d s; \d+\.\d tokens/s; the cache holds", shown)) == 2
    assert shown.count("tokens read in") == 2, "once when it was read, once under /cost"


def test_more_than_is_left_names_the_command() -> None:
    shown = " ".join(run_lines(["/budget 0.1", "What?", "/budget 0.9"]).split())
    assert "read the document again to keep" in shown and "/again with that budget" in shown


def test_what_a_terminal_would_obey_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conversation, "ask", lambda *_, **__: iter(["a\x1b[2Jb\x1b]0;T\x07\n\tc"]))
    shown = run_lines(["What is it?"])
    assert "a[2Jb]0;T\n" in shown and not {"\x1b", "\x07"} & set(shown)


def test_ctrl_c_sets_an_event_and_is_what_it_was_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stopped_by_ctrl_c() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with a chat template, as a model's folder."""
    folder = tmp_path_factory.mktemp("chat-base")
    for file in Path("data/base").iterdir():
        (folder / file.name).symlink_to(file.resolve())
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def test_on_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(chat_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "code.txt"
    path.write_text(DOCUMENT.text, encoding="utf-8")
    screen, keyboard = pty.openpty()
    command = [sys.executable, "-m", "sinklora", "chat", "--document", str(path), "--base", str(chat_folder)]
    program = subprocess.Popen(
        [*command, "--answer-tokens", "100000"],
        stdin=keyboard,
        stdout=keyboard,
        stderr=keyboard,
        start_new_session=True,
        preexec_fn=lambda: os.set_blocking(0, True),
    )
    os.close(keyboard)
    shown = wait_for(screen, "> ", "")
    os.write(screen, b"def name_3(x):\n")
    wait_for(screen, "def name_3(x):\r\n", shown)
    wait_for(screen, " ", "")  # of the answer, which would have hundreds of words
    program.send_signal(signal.SIGINT)
    shown = wait_for(screen, "the cache holds", "")
    assert len(shown) < 1000
    os.write(screen, b"/cost\n/quit\n")
    assert program.wait(60) == 0
    os.close(screen)


def wait_for(screen: int, words: str, shown: str, seconds: float = 120) -> str:
    """What a terminal shows until some words come after what it has `shown` already."""
    end, begin = time.monotonic() + seconds, len(shown)
    while words not in shown[begin:]:
        assert time.monotonic() < end, shown
        if select.select([screen], [], [], 1)[0]:
            shown += os.read(screen, 4096).decode(errors="replace")
    return shown


def test_questions_come_from_a_pipe(chat_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "code.txt"
    path.write_text(DOCUMENT.text, encoding="utf-8")
    arguments = ["chat", "--document", str(path), "--base", str(chat_folder), "--answer-tokens", "3"]
    shown = CliRunner().invoke(application, arguments, input="def name_3\n/cost\n")
    assert shown.exit_code == 0, shown.output
    assert "code.txt: " in shown.output and shown.output.count("the cache holds") == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--document", "gone.txt"], "document='gone.txt': no such file"),
        (["--document", "pyproject.toml"], "document='pyproject.toml': cannot be read; give text"),
        (["--document", "README.md", "--policy", "h3o"], "policy='h3o': expected one of"),
        (["--document", "README.md", "--budget", "lots"], "budget='lots': expected a fraction"),
        (["--document", "README.md", "--policy", "full", "--budget", "0.1"], "budget=0.1: "),
        ([], "document: give one (--document FILE), or open one in the browser (--page)"),
        (["--page", "--document", "README.md"], "document='README.md': leave it out"),
        (["--page", "--budget", "400"], "budget=400: the page takes whole per cent of a document"),
        (["--document", "README.md", "--base", "data/base"], "tokenizer='data/base': has no chat template"),
    ],
)
def test_what_is_wrong_is_a_sentence(arguments: list[str], words: str) -> None:
    shown = CliRunner().invoke(application, ["chat", *arguments])
    assert shown.exit_code == 2 and f"Error: {words}" in shown.output


def test_all_whole_per_cent_are_a_pages() -> None:
    for percent in range(1, 101):
        for text in (f"{percent}%", f"{percent / 100:.2f}"):
            assert check_page(make_policy("h2o", parse_budget(text)), 0) == percent
    assert check_page(Full(), 0) == 100


@pytest.mark.parametrize("budget", [0.125, 0.015, 0.001, 0.2005, 400])
def test_no_other_budget_is_a_pages(budget: float | int) -> None:
    words = f"budget={budget}: the page takes whole per cent of a document, 0.01 to 1.0"
    with pytest.raises(ValueError, match=re.escape(words)):
        check_page(H2O(budget), 0)


def test_a_page_has_a_port_of_its_own() -> None:
    with socket.socket() as taken:
        taken.bind((ADDRESS, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        shown = CliRunner().invoke(application, ["chat", "--page", "--port", port])
    assert shown.exit_code == 2 and f"Error: port={port}: is in use" in shown.output


def test_a_port_whose_page_has_just_ended_is_free() -> None:
    with socket.socket() as page:
        page.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as web servers do
        page.bind((ADDRESS, 0))
        page.listen()
        port = page.getsockname()[1]
        with socket.create_connection((ADDRESS, port)) as browser:
            connection, _ = page.accept()
            with pytest.raises(ValueError, match=f"port={port}: is in use"):
                free_port(port)
            connection.close()  # who closes first waits for what may still be under way (TIME_WAIT)
            assert browser.recv(1) == b""
    with socket.socket() as strict, pytest.raises(OSError):
        strict.bind((ADDRESS, port))
    assert free_port(port) == port
