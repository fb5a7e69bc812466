"""Results as files: tables (csv, markdown, LaTeX), figures (png, pdf), and a provenance record for each.

``python -m sinklora.report`` rewrites ``results/README.md`` and the tables quoted in ``README.md`` from
those files (see `sinklora.index`).
"""

import io
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sinklora.experiments import PROFILES
from sinklora.files import atomic_write, write_json
from sinklora.index import quote_tables, records, results_index, write_index
from sinklora.provenance import provenance
from sinklora.published import paper_values

__all__ = [
    "COLUMN_WIDTH",
    "PAGE_WIDTH",
    "Report",
    "figure_style",
    "from_repository_root",
    "latex",
    "markdown",
    "paper_values",
    "quote_tables",
    "records",
    "results_index",
    "write_index",
]

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.8  # inches
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 150,
    "savefig.dpi": 200,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}
LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)
DASH = "–"


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib settings of every figure here: readable in print at column width; lines differ by style,
    not by colour.
    """
    with plt.rc_context(STYLE):
        yield
        interactive = plt.isinteractive()
    # The first figure of a notebook brings up a backend that is interactive; without that, which leaving the
    # context would undo, no later figure is shown.
    plt.interactive(interactive)


def from_repository_root() -> Path:
    """Change to the repository's root (the folder with pyproject.toml), so that a notebook opened by hand
    finds its files.

    Raises FileNotFoundError outside a checkout.
    """
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "notebooks").is_dir():
            os.chdir(folder)
            return folder
    raise FileNotFoundError(f"{Path.cwd()} is not inside a checkout of sinklora; open the notebook from one")


@dataclass(frozen=True)
class Report:
    """Where one notebook, run with one profile and parameters, puts what it found.

    Each output has a record in ``provenance/``: paper item, caption, verdict, parameters, seeds, data,
    versions, commit, and the seconds since the report was made. Raises ValueError for an unknown profile.
    """

    notebook: str
    profile: str
    parameters: dict[str, Any]
    root: Path = field(default=Path("results"))
    started: float = field(default_factory=time.perf_counter, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile={self.profile!r}: expected one of {PROFILES}")

    def table(
        self,
        name: str,
        frame: pd.DataFrame,
        *,
        paper_item: str,
        caption: str,
        verdict: str,
        seeds: Sequence[int] = (),
        data: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Write a table (its index is not written) and its record; returns the table, for display.

        ``data`` describes the data; without it ``frame.attrs["data"]`` does, where there is one.
        """
        folder = self._folder("tables", name)
        texts = {
            "csv": frame.to_csv(index=False),
            "md": markdown(frame) + "\n",
            "tex": latex(frame, caption),
        }
        for suffix, text in texts.items():
            atomic_write(folder / f"{name}.{suffix}", text)
        data = data or frame.attrs.get("data")
        self._record("table", name, paper_item, caption, verdict, seeds, data)
        return frame

    def figure(
        self,
        name: str,
        figure: Figure,
        *,
        paper_item: str,
        caption: str,
        verdict: str,
        seeds: Sequence[int] = (),
        data: dict[str, Any] | None = None,
    ) -> Figure:
        """Write a figure as png and pdf, and its record; returns the figure.

        The same figure gives the same files every time.
        """
        folder = self._folder("figures", name)
        for suffix, unstable in (("png", "Software"), ("pdf", "CreationDate")):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, metadata={unstable: None})
            atomic_write(folder / f"{name}.{suffix}", content.getvalue())
        self._record("figure", name, paper_item, caption, verdict, seeds, data)
        return figure

    def _folder(self, kind: str, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"name={name!r}: expected letters, digits, '_' and '-'")
        folder = self.root / self.profile / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _record(
        self,
        kind: str,
        name: str,
        paper_item: str,
        caption: str,
        verdict: str,
        seeds: Sequence[int],
        data: dict[str, Any] | None,
    ) -> None:
        record = {
            "name": name,
            "kind": kind,
            "notebook": self.notebook,
            "profile": self.profile,
            "paper_item": paper_item,
            "caption": caption,
            "verdict": verdict,
            "seeds": list(seeds),
            "parameters": self.parameters,
            "data": data or {},
            "seconds": round(time.perf_counter() - self.started, 1),
            **provenance(),
        }
        write_json(self._folder("provenance", name) / f"{name}.json", record)


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown: numbers to the right, three decimals at most, missing values as a dash.

    Pipes and line breaks in cells and headings cannot break it.
    """
    cells = frame.map(_cell).rename(columns=_cell)
    aligned = ["right" if _is_numeric(frame[name]) else "left" for name in frame.columns]
    if frame.empty:  # tabulate aligns no column that has no row
        rule = "|".join("---:" if side == "right" else ":---" for side in aligned)
        return f"| {' | '.join(cells.columns)} |\n|{rule}|"
    return str(cells.to_markdown(index=False, colalign=aligned, disable_numparse=True))


def latex(frame: pd.DataFrame, caption: str) -> str:
    """A table in LaTeX (package booktabs) with its caption, both escaped; numbers as in `markdown`."""
    escaped = frame.map(_text).rename(columns=_text)
    columns = "".join("r" if _is_numeric(frame[name]) else "l" for name in frame.columns)
    title = " ".join(caption.split()).translate(LATEX_ESCAPES)
    return str(escaped.to_latex(index=False, escape=True, caption=title, column_format=columns))


def _is_numeric(column: "pd.Series[Any]") -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _text(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return DASH
    shown = f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)
    return " ".join(shown.split())


def _cell(value: Any) -> str:
    return _text(value).replace("|", "\\|")


if __name__ == "__main__":
    write_index()
