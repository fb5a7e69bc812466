"""What a notebook shows of a table or figure that it wrote: the thing itself, caption and verdict below it.

Each is there as HTML, as Markdown and as plain text, and a picture as PNG, so that a notebook looks the same
where it was run, on a code host and as LaTeX.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from sinklora.records.tables import Table, markdown

FIRST_ROWS = 5  # of a table too long to be read

INCHES_TO_PIXELS = 96  # as browsers count


@dataclass(frozen=True)
class Legend:
    """What stands below a table or figure."""

    name: str
    paper_item: str
    caption: str
    verdict: str
    seeds: Sequence[int] = ()

    def lines(self) -> list[tuple[str, str]]:
        """Pairs of a heading and what it says."""
        said = [(f"{self.paper_item}, {self.name}", self.caption)]
        said += [("Seeds", ", ".join(map(str, self.seeds)))] if self.seeds else []
        return [*said, ("Verdict", self.verdict)]

    def as_html(self) -> str:
        """Paragraphs."""
        return "".join(f"<p><b>{escape(head)}.</b> {escape(text)}</p>" for head, text in self.lines())

    def as_markdown(self) -> str:
        """Paragraphs."""
        return "\n\n".join(f"**{head}.** {' '.join(text.split())}" for head, text in self.lines())

    def as_text(self) -> str:
        """Lines."""
        return "\n".join(f"{head}. {text}" for head, text in self.lines())


@dataclass(frozen=True)
class ShownTable:
    """A table that was written, as a notebook shows it: of a long one the first rows."""

    table: Table
    legend: Legend
    longest: int

    @property
    def frame(self) -> pd.DataFrame:
        """All its numbers."""
        return self.table.frame

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        table, rest = self.table, ""
        if len(self.frame) > self.longest:
            table = Table(self.frame.head(FIRST_ROWS), self.table.columns)
            rest = f"The first {len(table.frame)} of {len(self.frame)} rows; {self.legend.name}.csv has all."
        html = table.written().to_html(index=False)
        return {
            "text/html": f"{html}<p>{escape(rest)}</p>{self.legend.as_html()}",
            "text/markdown": f"{markdown(table)}\n\n{rest}\n\n{self.legend.as_markdown()}",
            "text/plain": f"{table.written().to_string(index=False)}\n{rest}\n{self.legend.as_text()}",
        }


@dataclass(frozen=True)
class ShownFigure:
    """A figure that was written, as a notebook shows it: the picture, and below it a text of its own, because
    of one thing a reader sees either the picture or the text.
    """

    png: bytes
    width: float  # inches
    legend: Legend

    def _ipython_display_(self) -> None:
        from IPython.display import display

        picture = {
            "image/png": base64.b64encode(self.png).decode("ascii"),
            "text/plain": f"<{self.legend.name}>",
        }
        pixels = {"image/png": {"width": round(self.width * INCHES_TO_PIXELS)}}
        display(picture, raw=True, metadata=pixels)
        legend = self.legend
        texts = {
            "text/html": legend.as_html(),
            "text/markdown": legend.as_markdown(),
            "text/plain": legend.as_text(),
        }
        display(texts, raw=True)
