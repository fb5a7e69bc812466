"""Sessions of visitors: apart from each other, bounded, and alive after everything that goes wrong."""

import time
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from chat_models import LONG_TEXT, chat_base
from sinklora.cache.h2o import H2O
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.chat.documents import Document
from sinklora.chat.engine import Conversation
from sinklora.chat.limits import Limits
from sinklora.chat.reading import decoder_layers
from sinklora.chat.session import FAULT, READING, Session, View
from sinklora.chat.sessions import FullError, Sessions

POLICY = H2O(0.5)


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(answer_tokens: int = 5) -> Conversation:
    return Conversation(*chat_base(), POLICY, answer_tokens=answer_tokens)


def sessions(limits: Limits = Limits(sessions=2), clock: Clock | None = None) -> Sessions:  # noqa: B008
    return Sessions(make, limits, clock or Clock())


def given(folder: Path, text: str | bytes = LONG_TEXT[:400], name: str = "code.txt") -> Path:
    """A file in a folder of its own, as a session takes one."""
    own = folder / f"own-{time.monotonic_ns()}"
    own.mkdir()
    (own / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return own / name


def idle(session: Session) -> View:
    """What is seen of a session once its work is done."""
    view = session.view
    while view.busy:
        view = session.wait(view, 60)
    return view


def reading(session: Session) -> View:
    view = session.view
    while view.busy and not (view.phase == READING and view.share > 0):
        view = session.wait(view, 60)
    return view


def test_a_document_is_read_and_asked_about(tmp_path: Path) -> None:
    session, path = sessions().open("a"), given(tmp_path)
    assert session.read_file(path, POLICY) and not session.ask("def", POLICY), "one thing at a time"
    view = idle(session)
    assert view.message.startswith("code.txt: ") and view.document == "code.txt" and not path.parent.exists()
    session.ask(" def name_3 ", POLICY)
    view = idle(session)
    session.ask("And?", POLICY)
    later = idle(session)
    talk = make()
    talk.read(Document("code.txt", LONG_TEXT[:400]))
    answers = ["".join(talk.ask(question)) for question in ("def name_3", "And?")]
    assert [turn.answer for turn in later.turns] == answers
    assert later.turns[0] == view.turns[0] and later.turns[0].question == "def name_3"
    assert all("the cache holds" in turn.cost and "stopped" not in turn.cost for turn in later.turns)
    assert later.marked is not None and later.marked.kept.sum(-1).max() < later.marked.kept.shape[-1]


def test_sessions_see_nothing_of_each_other(tmp_path: Path) -> None:
    store = sessions()
    one, other = store.open("one"), store.open("other")
    one.read_file(given(tmp_path), POLICY)
    other.read_file(given(tmp_path, "class Other:\n    pass\n" * 12, "other.txt"), POLICY)
    assert idle(one).document == "code.txt" and idle(other).document == "other.txt"
    one.ask("def name_3", POLICY)
    assert len(idle(one).turns) == 1 and other.view.turns == ()
    assert store.open("one") is one and store.find("other") is other and store.find("third") is None


def test_the_budget_is_changed_and_what_is_gone_is_offered_again(tmp_path: Path) -> None:
    session = sessions().open("a")
    session.change(H2O(0.2))
    assert idle(session).message == ""
    session.read_file(given(tmp_path), POLICY)
    half = idle(session).marked
    session.change(H2O(0.1))
    assert idle(session).message == "From the next question on."
    session.ask("def name_3", H2O(0.1))
    view = idle(session)
    assert half is not None and view.marked is not None
    assert view.marked.kept.sum() < half.kept.sum() / 3 and not view.again
    for policy, words in [(H2O(0.4), "gone; read the document again"), (StreamingLLM(0.1), "read with h2o")]:
        session.change(policy)
        assert idle(session).again and words in session.view.message
    # Who asks all the same is answered from what there is.
    session.ask("And?", H2O(0.4))
    assert len(idle(session).turns) == 2
    session.read_again(StreamingLLM(0.4))
    view = idle(session)
    assert view.turns == () and view.marked is not None and not view.again
    share = view.marked.kept.mean()
    assert 0.3 < share < 0.5 and np.ptp(view.marked.kept.sum((0, 1))) > 0


def test_a_stop_while_reading_leaves_what_was(tmp_path: Path) -> None:
    session = sessions().open("a")
    session.read_file(given(tmp_path), POLICY)
    idle(session)
    session.ask("def name_3", POLICY)
    before = idle(session)
    session.read_file(given(tmp_path, LONG_TEXT[:900], "more.txt"), StreamingLLM(0.3))
    reading(session)
    session.stop()
    view = idle(session)
    assert view.message == "Stopped; nothing was read." and view.again
    assert view.turns == before.turns and view.document == "code.txt"
    session.ask("And?", POLICY)
    view = idle(session)
    assert len(view.turns) == 2 and view.message == "", "the policy is what it was, too"
    session.read_again(POLICY)
    assert idle(session).document == "more.txt"


def test_a_stopped_answer_says_so(tmp_path: Path) -> None:
    store = Sessions(lambda: make(300), Limits(), Clock())
    session = store.open("a")
    session.read_file(given(tmp_path), POLICY)
    idle(session)
    session.ask("def name_3(x):", POLICY)
    while not session.view.turns or not session.view.turns[-1].answer:
        session.wait(session.view, 60)
    session.stop()
    assert idle(session).turns[0].cost.endswith("; stopped")


def test_what_waits_is_stopped_before_it_begins(tmp_path: Path) -> None:
    store, hold = sessions(), Event()
    store._worker.submit(hold.wait, 30)
    session = store.open("a")
    session.read_file(given(tmp_path), POLICY)
    session.stop()
    hold.set()
    assert idle(session).message == "Stopped; nothing was read." and session.view.share == 0


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.txt", b" ", "there is no text in it"),
        ("binary.txt", b"\0", "is binary"),
        ("no.pdf", b"garbage", "is damaged"),
        ("song.mp3", b"ID3", "cannot be read; give text"),
        ("large.txt", b"x" * 30_000, "at most"),
        ("many.txt", b"a b c d " * 300, "tokens, at most 900 tokens are read here"),
        ("letters.txt", b"a" * 20_000, "characters, at most 900 tokens are read here"),
        ("long.txt", b"x y " * 300, "the model was trained for 512"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    session = sessions(Limits(document_bytes=25_000, document_tokens=900)).open("a")
    path = given(tmp_path, data, name)
    session.read_file(path, POLICY)
    assert words in idle(session).message and not path.parent.exists()
    session.read_file(given(tmp_path), POLICY)
    assert idle(session).document == "code.txt"


def test_questions_that_cannot_be_asked_are_sentences(tmp_path: Path) -> None:
    session = sessions(Limits(question_characters=900)).open("a")
    session.ask("Who?", POLICY)
    assert "read one before asking" in idle(session).message
    session.read_again(POLICY)
    assert "open one first" in idle(session).message
    session.read_file(given(tmp_path), POLICY)
    idle(session)
    for question, words in [(" ", "is empty"), ("x " * 440, "no room is left"), ("x" * 901, "at most 900")]:
        session.ask(question, POLICY)
        assert words in idle(session).message and session.view.turns == ()


def test_a_fault_is_told_and_the_session_lives_on(tmp_path: Path) -> None:
    session = sessions().open("a")
    session.read_file(given(tmp_path), "h2o")  # type: ignore[arg-type]
    assert idle(session).message == FAULT and not session.view.busy


def test_after_a_failed_answer_reading_again_is_offered(tmp_path: Path) -> None:
    session = sessions().open("a")
    session.read_file(given(tmp_path), POLICY)
    idle(session)
    session.ask("def name_3", POLICY)
    whole = idle(session).turns
    hook = decoder_layers(session._talk.model)[-1].register_forward_hook(fail)
    session.ask("And?", POLICY)
    view = idle(session)
    hook.remove()
    assert view.message == FAULT and view.again and view.marked is None
    assert "Ask again" not in FAULT
    assert view.turns[:1] == whole and view.turns[1].cost == "failed half-way"
    # The offer stays, whatever is done in its place.
    session.ask("And?", POLICY)
    assert idle(session).again and "read it again" in session.view.message
    session.change(H2O(0.2))
    assert idle(session).again
    session.read_again(H2O(0.2))
    view = idle(session)
    assert view.turns == () and view.marked is not None and not view.again
    session.ask("def name_3", H2O(0.2))
    assert idle(session).turns[0].cost


def fail(*_: object) -> None:
    raise RuntimeError("the device is gone")


# --- how many are kept --------------------------------------------------------------------------------------


def test_few_sessions_are_kept_and_none_for_long() -> None:
    clock = Clock()
    store = sessions(Limits(sessions=2, minutes=1), clock)
    first = store.open("a")
    clock.now = 10
    store.open("b")
    clock.now = 20
    assert store.find("a") is first
    store.open("c")  # b was idle longest
    assert store.find("b") is None and len(store) == 2
    clock.now = 81
    assert store.find("a") is None and len(store) == 0
    store.open("d")
    store.close("d")
    store.close("never there")
    assert len(store) == 0


def test_sessions_at_work_are_neither_dropped_nor_outdated(tmp_path: Path) -> None:
    clock, hold = Clock(), Event()
    store = sessions(Limits(sessions=1, minutes=1), clock)
    store._worker.submit(hold.wait, 30)
    session = store.open("a")
    session.read_file(given(tmp_path), POLICY)
    clock.now = 1000
    with pytest.raises(FullError, match="All 1 conversations"):
        store.open("b")
    hold.set()
    idle(session)
    clock.now = 1030
    assert store.find("a") is session
    store.end()
    assert len(store) == 0


@pytest.mark.parametrize("wrong", [{"sessions": 0}, {"minutes": -1.0}, {"document_bytes": 1.5}])
def test_limits_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]
