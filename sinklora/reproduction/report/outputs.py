"""Results as files: tables (csv, markdown, LaTeX), figures (png, pdf), and a provenance record for each."""

import io
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sinklora.pretrained.catalogue import packaged_record
from sinklora.records.checks import check_choice
from sinklora.records.files import atomic_write, write_json
from sinklora.records.provenance import current_provenance
from sinklora.records.row_files import parquet_bytes
from sinklora.records.tables import Table, latex, markdown
from sinklora.reproduction.places import RESULTS, find_sources, home_of
from sinklora.reproduction.report.claims import Claim, claims_to_json, told_together
from sinklora.reproduction.report.experiments import PROFILES
from sinklora.reproduction.report.shown import Legend, ShownFigure, ShownTable

LONGEST_TABLE = 150  # rows that are written as text: longer ones are measurements, for programs


def from_repository_root() -> Path:
    """Change to the repository's root, or to what was installed of it, so that a notebook opened by hand
    finds its files; returns it. Where results go is then named by the environment.

    Raises FileNotFoundError where neither is there.
    """
    sources = find_sources()
    os.environ.setdefault(RESULTS, str(home_of(sources) / "results"))
    os.chdir(sources)
    return sources


@dataclass(frozen=True)
class Report:
    """Where one notebook, run with one profile and parameters, puts what it found.

    Each output has a record in `provenance/`: paper item, caption, verdict, parameters, seeds, data, runs,
    versions, commit, changed files, the packaged model where the parameter `base` names one, and the seconds
    since the report was made; the runs that it was made of are listed in `made_of/`.
    Raises ValueError for an unknown profile.
    """

    notebook: str
    profile: str
    parameters: dict[str, Any]
    root: Path = field(default_factory=lambda: Path(os.environ.get(RESULTS, "results")))
    started: float = field(default_factory=time.perf_counter, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choice("profile", self.profile, PROFILES)

    def table(
        self,
        name: str,
        table: Table | pd.DataFrame,
        *,
        paper_item: str,
        caption: str,
        verdict: str,
        seeds: Sequence[int] = (),
        data: dict[str, Any] | None = None,
        runs: Sequence[dict[str, Any]] = (),
        raw: bool = False,
    ) -> ShownTable:
        """Write a table and its record; what it returns shows the table, its caption and its verdict.

        The csv holds all numbers of its frame (not the index), Markdown and LaTeX what its columns show; of
        `raw` measurements, one row an item or round, and of a table of more than 150 rows the csv is all.
        `data` describes the data, `runs` are the records of the runs that it was made of (`run_records`);
        without them the frame's `attrs` of these names do, where there are any.
        """
        table = table if isinstance(table, Table) else Table(table)
        frame = table.frame
        folder = self._folder("tables", name)
        longest = 0 if raw else LONGEST_TABLE
        atomic_write(folder / f"{name}.csv", frame.to_csv(index=False))
        for suffix, text in (("md", markdown(table) + "\n"), ("tex", latex(table, caption))):
            if len(frame) <= longest:
                atomic_write(folder / f"{name}.{suffix}", text)
            else:  # nor what an earlier run wrote
                (folder / f"{name}.{suffix}").unlink(missing_ok=True)
        data, runs = data or frame.attrs.get("data"), runs or frame.attrs.get("runs", ())
        self._record("table", name, paper_item, caption, verdict, seeds, data, runs)
        return ShownTable(table, Legend(name, paper_item, caption, verdict, seeds), longest)

    def rows(
        self, name: str, rows: pd.DataFrame, *, paper_item: str, caption: str, seeds: Sequence[int] = ()
    ) -> None:
        """Write measurements, one row an item, as parquet, and a record.

        From them everything else is computed: read it with `pandas.read_parquet`.
        """
        path = self._folder("rows", name) / f"{name}.parquet"
        atomic_write(path, parquet_bytes(rows))
        data, runs = rows.attrs.get("data"), rows.attrs.get("runs", ())
        self._record("rows", name, paper_item, caption, "", seeds, data, runs)

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
        runs: Sequence[dict[str, Any]] = (),
    ) -> ShownFigure:
        """Write a figure as png and pdf, and its record; what it returns shows it, its caption and its
        verdict.

        The same figure gives the same files every time. It is closed, so that a notebook does not show it
        once more.
        """
        folder = self._folder("figures", name)
        contents = {}
        for suffix, unstable in (("png", "Software"), ("pdf", "CreationDate")):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, metadata={unstable: None})
            contents[suffix] = content.getvalue()
            atomic_write(folder / f"{name}.{suffix}", contents[suffix])
        plt.close(figure)
        self._record("figure", name, paper_item, caption, verdict, seeds, data, runs)
        legend = Legend(name, paper_item, caption, verdict, seeds)
        return ShownFigure(contents["png"], figure.get_figwidth(), legend)

    def claims(self, claims: Sequence[Claim]) -> str:
        """Write what became of the paper's sentences, in place of what this notebook wrote before.

        Returns them as a paragraph.
        """
        path = self._folder("claims", self.notebook) / f"{self.notebook}.json"
        write_json(path, claims_to_json(claims))
        return told_together(claims)

    def _list_runs(self, name: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Write a table of the runs, a line each, though measurements may share one; how many, and of which
        commits (None: it is not known).
        """
        runs = list({run["run"]: run for run in runs}.values())
        path = self._folder("made_of", name) / f"{name}.csv"
        if not runs:
            path.unlink(missing_ok=True)  # of an earlier run
            return {}
        frame = pd.DataFrame(runs)
        files = frame.changed_files.map(" ".join)
        atomic_write(path, frame.assign(changed_files=files).to_csv(index=False))
        commits = {run["commit"] for run in runs}
        return {"count": len(runs), "commits": sorted(commits, key=lambda commit: (commit is None, commit))}

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
        runs: Sequence[dict[str, Any]],
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
            "runs": self._list_runs(name, runs),
            "seconds": round(time.perf_counter() - self.started, 1),
            **packaged_record(str(self.parameters.get("base"))),
            **current_provenance(),
        }
        write_json(self._folder("provenance", name) / f"{name}.json", record)
