"""The demo: its numbers are those of the instruments, its marks the cache's, its refusals sentences."""

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typer.testing import CliRunner

from helpers import assert_close
from sinklora.cache.h2o import H2O
from sinklora.cache.novelty import Novelty
from sinklora.cache.policies import CachePolicy
from sinklora.cache.sliding_window import SlidingWindow
from sinklora.cache.streaming_llm import StreamingLLM
from sinklora.cli import application
from sinklora.evaluate.through_cache import continuation_nll
from sinklora.hf.budget_cache import BudgetCache
from sinklora.hf.token_text import TokenPieces, token_pieces
from sinklora.reproduction.demo.page import PROMPT_TOKENS, SCORED_TOKENS, Page, cut_page, page_text
from sinklora.reproduction.demo.reading import compared_policies, read_page, write_on
from sinklora.reproduction.demo.run import DemoRequest, show_demo
from sinklora.reproduction.demo.screen import HONEST, excerpt, marked_text

SOURCE = Path("sinklora/records/runs.py")


@pytest.fixture(scope="module")
def page(tokenizer: PreTrainedTokenizerBase) -> Page:
    return cut_page(token_pieces(tokenizer, SOURCE.read_text(encoding="utf-8"))[:176])


# --- the page -----------------------------------------------------------------------------------------------


def test_a_long_text_is_cut_in_prompt_and_continuation() -> None:
    tokens = TokenPieces(tuple(range(5000)), ("x",) * 5000)
    page = cut_page(tokens)
    assert page.prompt.ids == tuple(range(PROMPT_TOKENS))
    assert page.continuation == tuple(range(PROMPT_TOKENS, PROMPT_TOKENS + SCORED_TOKENS))


def test_a_short_text_or_context_keeps_the_shares_and_leaves_room_to_write() -> None:
    tokens = TokenPieces(tuple(range(660)), ("x",) * 660)
    page = cut_page(tokens)
    assert (len(page.prompt), len(page.continuation)) == (600, 60)
    page = cut_page(tokens, trained_tokens=512)
    assert (len(page.prompt), len(page.continuation)) == (408, 40)


def test_the_chapter_in_the_package_is_long_enough() -> None:
    text = page_text()
    assert text.startswith("Down the Rabbit-Hole") and text.isascii()
    assert len(text) > 5 * (PROMPT_TOKENS + SCORED_TOKENS)  # SmolLM2 has 4.1 characters a token on it


# --- the numbers --------------------------------------------------------------------------------------------

POLICIES = [None, H2O(32), SlidingWindow(32), StreamingLLM(32), Novelty(32)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_losses_are_those_of_reading_token_by_token(
    model: PreTrainedModel, page: Page, policy: CachePolicy | None
) -> None:
    reading = read_page(model, page, policy, piece=1)
    document = np.array([*page.prompt.ids, *page.continuation])
    full = BudgetCache(model, H2O(1000))
    [losses] = continuation_nll(
        model,
        [document],
        partial(BudgetCache, model, policy) if policy else lambda: full,
        prompt_tokens=len(page.prompt),
        scored_tokens=len(page.continuation),
        progress=False,
    )
    assert_close(reading.losses, losses, atol=2e-4)
    assert_close(reading.perplexity, float(np.exp(losses.mean())), atol=0, rtol=1e-4)


def test_kept_tokens_are_those_of_the_cache_after_the_prompt(model: PreTrainedModel, page: Page) -> None:
    reading = read_page(model, page, H2O(32))
    cache = BudgetCache(model, H2O(32))
    with torch.no_grad():
        model(torch.tensor([page.prompt.ids]), past_key_values=cache, use_cache=True)
    assert reading.kept is not None and reading.kept.shape == (4, 4, len(page.prompt))
    for layer, mask in enumerate(reading.kept):
        expected = cache.kept_positions(layer)[0].tolist()
        assert [np.flatnonzero(head).tolist() for head in mask] == expected


def test_what_is_written_is_what_generate_writes(model: PreTrainedModel, page: Page) -> None:
    ids = torch.tensor([page.prompt.ids])
    options: Any = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 64, "do_sample": False}
    for policy in (None, H2O(32)):
        cache = {} if policy is None else {"past_key_values": BudgetCache(model, policy)}
        expected = model.generate(ids, **cache, **options, eos_token_id=-1)  # type: ignore[operator]
        written = write_on(model, page, policy)
        assert written.written.tolist() == expected[:, ids.shape[1] :].tolist()
        assert written.held > 0 and written.prompt > 0 and written.decoding > 0


def test_all_published_policies_have_the_budget_of_the_chosen_one() -> None:
    policies = compared_policies("novelty", 0.2, 500)
    assert policies[0] == Novelty(100)
    assert policies[1:] == sorted(policies[1:], key=lambda policy: policy.name)
    assert {H2O(100), SlidingWindow(100), StreamingLLM(100)} <= set(policies)
    assert [type(p) for p in compared_policies("h2o", 64, 500)].count(H2O) == 1


def test_small_budgets_are_compared_where_they_can_be_had() -> None:
    # A fraction is split as its policy says; of so few tokens some leave no place beside their first ones.
    assert {StreamingLLM(2, sink_tokens=1), SlidingWindow(2)} <= set(compared_policies("replay", 0.004, 500))
    names = [policy.name for policy in compared_policies("h2o", 4, 500)]
    assert names == ["h2o", "local", "snapkv", "tova"]


# --- the screen ---------------------------------------------------------------------------------------------


def test_the_more_heads_keep_a_piece_the_darker_is_its_ground() -> None:
    text = marked_text(["all", " some\n\n", "\nnone"], np.array([1.0, 0.5, 0.0]))
    assert text.plain == "all some↵↵↵\nnone"
    greys = [span.style.bgcolor.triplet.red for span in text.spans]  # type: ignore[union-attr]
    assert greys == sorted(greys) and greys[-1] == 255
    letters = [span.style.color.triplet.red for span in text.spans]  # type: ignore[union-attr]
    assert letters == [255, 0, 0]


def test_without_colours_dots_stand_for_what_is_evicted() -> None:
    text = marked_text(["kept", " gone, too", " half"], np.array([0.9, 0.4, 0.5]), shaded=False)
    assert text.plain == "kept ····· ··· half"


@pytest.mark.parametrize(
    ("lines", "shown"),
    [(0, "0 1 2 3 4 5 6 7"), (8, "0 1 2 3 4 5 6 7"), (6, "0 1 2 3 … 6 7"), (1, "0 …")],
)
def test_an_excerpt_has_the_beginning_and_the_end(lines: int, shown: str) -> None:
    console = Console(width=20, file=io.StringIO())
    text = marked_text([f"{number}\n" for number in range(7)] + ["7"], np.ones(8))
    kept = [line.rstrip("↵ ")[:1] for line in excerpt(console, text, lines).plain.splitlines()]
    assert " ".join(kept) == shown


# --- the command --------------------------------------------------------------------------------------------


def invoked(*arguments: object) -> Any:
    return CliRunner().invoke(
        application,
        ["demo", *map(str, arguments)],
        env={"COLUMNS": "110", "HF_HUB_OFFLINE": "1"},
    )


def test_the_command_shows_page_numbers_and_what_they_are_worth(tmp_path: Path) -> None:
    picture = tmp_path / "demo.svg"
    shown = invoked("--base", "data/base", "--text", SOURCE, "--budget", "20%", "--save", picture)
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.output.split())
    for name in (
        "full cache",
        "H2O",
        "StreamingLLM",
        "Local",
        "keeps of 408",
        "40 chosen, 41 newest",
    ):
        assert name in said
    assert HONEST in said and "embedded base" in said and "···" in said
    assert "perplexity" in said and "tokens/s" in said and "MB" in said
    drawn = picture.read_text(encoding="utf-8")
    ElementTree.fromstring(drawn)
    words = drawn.replace("&#160;", " ")
    assert "H2O writes on:" in words and "StreamingLLM" in words
    assert "@font-face" not in drawn and "url(http" not in drawn
    assert list(tmp_path.iterdir()) == [picture]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "4"), "Expected Attention and StreamingLLM, for which budget=4 is too small."),
        (("--budget", "0.005", "--policy", "replay"), "1 first, 1 newest"),
    ],
)
def test_a_small_budget_is_shown(arguments: Sequence[str], words: str) -> None:
    shown = invoked("--base", "data/base", "--text", SOURCE, *arguments)
    assert shown.exit_code == 0, shown.output
    assert words in " ".join(shown.output.split())


def text_file(folder: Path, content: bytes) -> Path:
    path = folder / "text.txt"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy", "h3o"), "policy='h3o': expected one of expected_attention, h2o"),
        (("--policy", "full"), "policy='full': expected one of expected_attention, h2o"),
        (("--budget", "a fifth"), "budget='a fifth'"),
        (("--budget", ""), "budget=''"),
        (("--budget", "0"), "budget=0"),
        (("--budget", "1.5"), "budget=1.5"),
        (("--budget", "1.0", "--text", SOURCE), "budget=1.0: nothing is evicted of a prompt of 408 tokens"),
        (("--budget", "408", "--text", SOURCE), "budget=408: nothing is evicted"),
        (("--text", "nowhere.txt"), "text='nowhere.txt': no such file"),
        (("--text", "data"), "text='data': no such file"),
        (("--save", "demo.gif"), "save='demo.gif': expected a name that ends with .svg"),
        (("--save", "nowhere/demo.svg"), "save='nowhere/demo.svg': there is no such folder"),
        (("--base", "no/such/model"), "base='no/such/model': no model there"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_wrong_request_is_refused_in_one_sentence(arguments: Sequence[object], words: str) -> None:
    refused = invoked("--base", "data/base", *arguments)
    assert refused.exit_code == 2, refused.output
    lines = refused.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: ") and words in lines[0]


@pytest.mark.parametrize(
    ("content", "words"), [(b"\xff\xfe\x00text", "is not UTF-8 text"), (b"too short", "give a longer text")]
)
def test_a_wrong_text_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    refused = invoked("--base", "data/base", "--text", text_file(tmp_path, content))
    assert refused.exit_code == 2 and words in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_all_lines_are_shown_on_request_and_nothing_is_written(tmp_path: Path) -> None:
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    text = text_file(tmp_path, ("one two three four five six seven\n" * 40).encode())
    show_demo(DemoRequest(base="data/base", text=text, lines=0, budget="32"), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert len(shown.splitlines()) > 35 and "lines …" not in shown
    assert list(tmp_path.iterdir()) == [text]
