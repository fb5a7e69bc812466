"""The demo on a terminal: the page with its kept tokens marked, and the numbers."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from sinklora.cache.policies import CachePolicy
from sinklora.evaluate.generation_cost import Generation
from sinklora.records.files import atomic_write
from sinklora.reproduction.demo.page import Page
from sinklora.reproduction.demo.reading import Reading
from sinklora.reproduction.names import CACHES

SHADES = 8  # from kept by nobody to kept by all
KEPT_BY_ALL = (16, 52, 110)  # red, green, blue
PICTURE_COLUMNS = 110
NOT_MEASURED = "–"
HONEST = "One page, one model, one run on this machine: a demonstration, not a measurement."


def marked_text(pieces: Sequence[str], share: NDArray[np.float64], *, shaded: bool = True) -> Text:
    """The pieces of a text, the darker the larger the share of heads that keeps a token; ↵: a line's end.

    Not `shaded`, for terminals without colours: of what less than half of the heads keep, dots are left.
    """
    text, line_ended = Text(), False
    for piece, kept in zip(pieces, share, strict=True):
        if not piece:
            continue
        if line_ended and not piece.startswith("\n"):  # one break for all ends of lines in a row
            text.append("\n")
        line_ended = piece.endswith("\n")
        shown = re.sub(r"\n+", lambda ends: "↵" * len(ends[0]) + "\n", piece)
        shown = shown.removesuffix("\n")
        if shaded:
            text.append(shown, _shade(float(kept)))
        else:
            text.append(shown if kept >= 0.5 else re.sub(r"\S", "·", shown))
    return text


def _shade(share: float) -> Style:
    """Black on white for what nobody keeps, white on dark blue, which no terminal has, for what all keep."""
    step = round(share * SHADES) / SHADES
    ground = ",".join(str(round(255 + step * (part - 255))) for part in KEPT_BY_ALL)
    letters = "rgb(255,255,255)" if step > 0.5 else "rgb(0,0,0)"
    return Style.parse(f"{letters} on rgb({ground})")


def excerpt(console: Console, text: Text, lines: int) -> Text:
    """The beginning and the end of a text, so many lines as it is wrapped; 0: all of it."""
    wrapped = text.wrap(console, console.width)
    left_out = len(wrapped) - lines
    if not lines or left_out <= 0:
        return Text("\n").join(wrapped)
    first = (2 * lines + 2) // 3
    between = Text(f"… {left_out} lines …", style="dim")
    return Text("\n").join([*wrapped[:first], between, *wrapped[len(wrapped) - lines + first :]])


def page_view(console: Console, page: Page, reading: Reading, lines: int) -> RenderableType:
    """The prompt as a policy keeps it, with a line that says what the marks mean."""
    assert reading.kept is not None and reading.policy is not None
    shaded = console.color_system is not None
    layers, heads, _ = reading.kept.shape
    marks = (
        "the darker a word, the more of them keep it" if shaded else "dots: fewer than half of them keep it"
    )
    legend = Text(
        f"{_name(reading.policy)} keeps {reading.policy.described_split(len(page.prompt))} tokens in each of "
        f"{layers} × {heads} key/value heads; {marks}.",
        style="italic",
    )
    marked = marked_text(page.prompt.pieces, reading.kept.mean((0, 1)), shaded=shaded)
    return Group(excerpt(console, marked, lines), legend, Text())


def numbers_table(page: Page, readings: Sequence[Reading], written: Sequence[Generation]) -> Table:
    """What the caches cost and predict, one a line; the first ones have `written` as well, and were timed."""
    prompt = len(page.prompt)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("cache", no_wrap=True)
    table.add_column(f"keeps of {prompt}")
    scored = f"perplexity,\nnext {len(page.continuation)}"
    for name in ("prompt\n(s)", "writing\n(tokens/s)", "cache\n(MB)", scored):
        table.add_column(name, justify="right")
    for number, reading in enumerate(readings):
        policy = reading.policy
        cost = _cost(written[number]) if number < len(written) else [NOT_MEASURED] * 3
        kept = "all" if policy is None else policy.described_split(prompt).partition(" of ")[0]
        table.add_row(_name(policy), kept, *cost, f"{reading.perplexity:.1f}")
    return table


def _cost(written: Generation) -> list[str]:
    speed = written.written.shape[1] / written.decoding
    return [f"{written.prompt:.1f}", f"{speed:.1f}", f"{written.held / 1e6:.1f}"]


def continuations(readings: Sequence[Reading], texts: Sequence[str]) -> RenderableType:
    """What the model wrote after the page through each of the first caches."""
    lines: list[RenderableType] = []
    for reading, text in zip(readings, texts, strict=False):
        lines.append(Text.assemble((f"{_name(reading.policy)} writes on: ", "bold"), " ".join(text.split())))
    return Group(*lines, Text())


def _name(policy: CachePolicy | None) -> str:
    name = "full" if policy is None else policy.name
    return CACHES.get(name, name)


def save_picture(path: Path, title: str, views: Sequence[RenderableType], width: int) -> None:
    """The views as an SVG, as a terminal of so many columns would show them."""
    console = picture_console(width)
    for view in views:
        console.print(view)
    picture = console.export_svg(title=title, theme=DEFAULT_TERMINAL_THEME, unique_id="demo")
    # A picture asks no server for a font: any of a fixed width will do.
    atomic_write(path, re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))


def picture_console(width: int = PICTURE_COLUMNS) -> Console:
    """A terminal in true colours that records what it is shown, and shows it nobody."""
    return Console(
        record=True, file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor"
    )
