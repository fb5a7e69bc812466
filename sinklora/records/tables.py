"""Tables as text: Markdown and LaTeX, numbers to the right, missing values as a dash."""

from typing import Any

import numpy as np
import pandas as pd

LATEX_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)

DASH = "–"


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
