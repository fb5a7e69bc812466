"""The page as a visitor uses it, in a headless Chromium; skipped where there is none, or no Gradio."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from chat_models import LONG_TEXT, chat_base
from sinklora.cache.h2o import H2O
from sinklora.chat.engine import Conversation
from sinklora.chat.limits import Limits
from sinklora.chat.page_server import served

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# Looked for and not imported: that takes seconds of every process that collects the tests.
MISSING = [name for name in ("gradio", "selenium") if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver"),
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)}"),
]

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
]
SCRIPT = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"
TEMPLATE_SIGNS = "${document.title = 'run'} {{value}} `x`"
LIMITS = Limits(sessions=3, document_bytes=40_000, document_tokens=2000)


class Visitor:
    """A tab with the page, and what its visitor does; closed at the end of a test."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        driver.switch_to.new_window("tab")
        driver.get(address)
        self.tab = driver.current_window_handle
        self.until(lambda: self.find("input[type=file]") and self.find("#status div"))

    def find(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def text(self, selector: str) -> str:
        return "\n".join(element.get_property("textContent") for element in self.find(selector))

    def until(self, holds: Callable[[], Any], seconds: float = 60) -> None:
        """Wait until something holds; parts of the page may be made anew meanwhile."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if holds():
                    return
            except StaleElementReferenceException:
                pass
            time.sleep(0.05)
        raise AssertionError(f"status: {self.text('#status')!r}; turns: {self.text('#turns')[-300:]!r}")

    def here(self) -> None:
        self.driver.switch_to.window(self.tab)

    def open(self, path: Path) -> None:
        self.find("input[type=file]")[0].send_keys(str(path))

    def ask(self, question: str) -> None:
        self.until(lambda: self.find("#ask")[0].is_enabled())
        self.find("#question textarea")[0].send_keys(question)
        self.find("#ask")[0].click()

    def answered(self, turns: int) -> None:
        self.until(lambda: self.text("#turns").count("the cache holds") == turns)

    def says(self, words: str) -> None:
        self.until(lambda: words in self.text("#status"))

    def keep(self, percent: int) -> None:
        """Move the slider, as by its number's field."""
        field = self.find("#percent input[type=number]")[0]
        self.driver.execute_script("arguments[0].select()", field)
        field.send_keys(f"{percent}\n")
        self.driver.execute_script("arguments[0].blur()", field)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    model, tokenizer = chat_base()

    def make() -> Conversation:
        return Conversation(model, tokenizer, H2O(0.5), answer_tokens=ANSWER[0])

    with served(make, LIMITS, model="a tiny model", port=0, percent=50) as (where, _):
        yield where


ANSWER = [6]  # tokens of an answer of the sessions that begin


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def visit(address: str, driver: Any) -> Iterator[Callable[[], Visitor]]:
    """What opens tabs, and sees in the end that none loaded anything from elsewhere.

    A browser has six connections to a server, and each tab needs one: none stays open.
    """
    first, tabs = driver.current_window_handle, list[Visitor]()

    def another() -> Visitor:
        tabs.append(Visitor(driver, address))
        return tabs[-1]

    yield another
    for tab in tabs:
        tab.here()
        driver.close()
    driver.switch_to.window(first)
    asked = addresses_asked(driver)
    assert any(url.startswith(address) for url in asked)
    # A new tab is a page of the browser's own for a moment.
    assert [
        url for url in asked if not re.match(rf"{re.escape(address)}|data:|blob:|chrome[a-z-]*:", url)
    ] == []


def addresses_asked(driver: Any) -> set[str]:
    """All that the browser's tabs asked for since this was last called."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_visit(visit: Callable[[], Visitor], tmp_path: Path) -> None:
    visitor = visit()
    visitor.open(written(tmp_path, "code.txt", LONG_TEXT[:600]))
    visitor.says("code.txt: ")
    visitor.until(lambda: visitor.text(".marked") == LONG_TEXT[:600].strip())
    visitor.ask("def name_3")
    visitor.answered(1)
    visitor.ask("And then?")
    visitor.answered(2)
    assert "def name_3" in visitor.text("#turns") and "tokens/s" in visitor.text("#turns")

    visitor.keep(10)
    visitor.says("From the next question on.")
    before = visitor.text(".legend")
    visitor.ask("And?")
    visitor.answered(3)
    visitor.until(lambda: visitor.text(".legend") != before)
    visitor.keep(40)
    visitor.says("gone; read the document again")
    visitor.until(lambda: visitor.find("#again") and visitor.find("#again")[0].is_displayed())
    visitor.find("#again")[0].click()
    visitor.says("code.txt: ")
    assert visitor.text("#turns").strip() == ""


def test_markup_in_document_question_and_name_is_text(
    visit: Callable[[], Visitor], driver: Any, tmp_path: Path
) -> None:
    visitor = visit()
    text = f"{SCRIPT}\n{TEMPLATE_SIGNS}\n{LONG_TEXT[:200]}".strip()
    visitor.open(written(tmp_path, "<img src=x onerror=alert(1)>.txt", text))
    visitor.until(lambda: visitor.text(".marked") == text)
    visitor.ask(SCRIPT + TEMPLATE_SIGNS)
    visitor.answered(1)
    assert SCRIPT + TEMPLATE_SIGNS in visitor.text("#turns")
    assert driver.title == "Chat about a document"
    assert not visitor.find(".marked img, .marked script, #turns img, #turns script, #status img")


def test_what_cannot_be_read_is_said_and_the_page_lives_on(
    visit: Callable[[], Visitor], driver: Any, tmp_path: Path
) -> None:
    visitor = visit()
    for name, data, words in [
        ("empty.txt", b" ", "there is no text in it"),
        ("binary.txt", b"\xff\xfe\0\1", "is not UTF-8 text"),
        ("no.pdf", b"garbage", "is damaged, or not what its name says"),
        ("song.mp3", b"ID3", "cannot be read; give text"),
        ("long.txt", b"a b c d e f g h " * 200, "the model was trained for"),
        ("longer.txt", b"a b c d e f g h " * 2000, "at most 2000 tokens are read here"),
    ]:
        visitor.open(written(tmp_path, name, data))
        visitor.says(words)
    visitor.open(written(tmp_path, "large.txt", b"x" * 50_000))
    visitor.until(lambda: "size" in driver.find_element("tag name", "body").text)
    visitor.open(written(tmp_path, "code.txt", LONG_TEXT[:300]))
    visitor.says("code.txt: ")


def test_a_stop_and_two_tabs(visit: Callable[[], Visitor], driver: Any, tmp_path: Path) -> None:
    ANSWER[0] = 400
    one, other = visit(), visit()
    ANSWER[0] = 6
    other.open(written(tmp_path, "other.txt", "class Other:\n    pass\n" * 12))
    other.says("other.txt: ")
    one.here()
    assert "other" not in driver.page_source.lower().replace("another", "").replace("other pages", "")
    one.open(written(tmp_path, "code.txt", LONG_TEXT[:300]))
    one.says("code.txt: ")
    one.ask("def name_3(x):")
    one.until(lambda: one.text(".answer") and one.find("#stop")[0].is_enabled())
    one.find("#stop")[0].click()
    one.until(lambda: "; stopped" in one.text("#turns"))
    assert len(one.text(".answer")) < 800, "all that there is room for would be more"
    other.here()
    assert "name_3" not in driver.page_source and other.text("#turns").strip() == ""
