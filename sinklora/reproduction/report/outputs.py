"""Results as files: tables (csv, markdown, LaTeX), figures (png, pdf), and a provenance record for each."""

import io
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from sinklora.pretrained.catalogue import packaged_record
from sinklora.records.files import atomic_write, write_json
from sinklora.records.provenance import current_provenance
from sinklora.records.tables import Table, latex, markdown
from sinklora.reproduction.report.claims import Claim, claims_to_json, told_together
from sinklora.reproduction.report.experiments import PROFILES

TableOf = TypeVar("TableOf", Table, pd.DataFrame)


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

    Each output has a record in `provenance/`: paper item, caption, verdict, parameters, seeds, data,
    versions, commit, the packaged model where the parameter `base` names one, and the seconds since the
    report was made. Raises ValueError for an unknown profile.
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
        table: TableOf,
        *,
        paper_item: str,
        caption: str,
        verdict: str,
        seeds: Sequence[int] = (),
        data: dict[str, Any] | None = None,
    ) -> TableOf:
        """Write a table and its record; returns the table, for display.

        The csv holds all numbers of its frame (not the index), Markdown and LaTeX what its columns show.
        `data` describes the data; without it the frame's `attrs["data"]` does, where there is one.
        """
        frame = table.frame if isinstance(table, Table) else table
        folder = self._folder("tables", name)
        texts = {
            "csv": frame.to_csv(index=False),
            "md": markdown(table) + "\n",
            "tex": latex(table, caption),
        }
        for suffix, text in texts.items():
            atomic_write(folder / f"{name}.{suffix}", text)
        data = data or frame.attrs.get("data")
        self._record("table", name, paper_item, caption, verdict, seeds, data)
        return table

    def rows(
        self, name: str, rows: pd.DataFrame, *, paper_item: str, caption: str, seeds: Sequence[int] = ()
    ) -> Path:
        """Write measurements, one row an item, as parquet, and a record; returns the file.

        From them everything else is computed: read it with `pandas.read_parquet`.
        """
        path = self._folder("rows", name) / f"{name}.parquet"
        content = io.BytesIO()
        rows.to_parquet(content, index=False, compression="zstd")
        atomic_write(path, content.getvalue())
        self._record("rows", name, paper_item, caption, "", seeds, rows.attrs.get("data"))
        return path

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

    def claims(self, claims: Sequence[Claim]) -> str:
        """Write what became of the paper's sentences, in place of what this notebook wrote before.

        Returns them as a paragraph.
        """
        path = self._folder("claims", self.notebook) / f"{self.notebook}.json"
        write_json(path, claims_to_json(claims))
        return told_together(claims)

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
            **packaged_record(str(self.parameters.get("base"))),
            **current_provenance(),
        }
        write_json(self._folder("provenance", name) / f"{name}.json", record)
