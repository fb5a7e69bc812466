"""Results as files: tables (csv, markdown, LaTeX), figures (png, pdf), a provenance record for each, and
the index.

``python -m sinklora.report`` rewrites ``results/README.md`` and the tables quoted in ``README.md`` from
those files.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sinklora.experiments import Experiment, load_experiments
from sinklora.files import atomic_write, write_json
from sinklora.provenance import provenance

COLUMN_WIDTH, PAGE_WIDTH = 3.3, 6.8  # inches
GREYS = ("black", "0.35", "0.55", "0.7")
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
QUOTED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib settings of every figure here: readable in print at column width; lines differ by style,
    not by colour.
    """
    with plt.rc_context(STYLE):
        yield


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


def _write_figure(figure: Figure, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")
    # Without the date two runs of the same numbers give the same file.
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
    figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)
    os.replace(temporary, path)


@dataclass(frozen=True)
class Report:
    """Where one notebook, run with one profile and parameters, puts what it found.

    Each output has a record in ``provenance/``: paper item, caption, verdict, parameters, seeds, data,
    versions, commit.
    """

    notebook: str
    profile: str
    parameters: dict[str, Any]
    root: Path = field(default=Path("results"))

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
        """Write a table (its index is not written) and its record; returns the table, for display."""
        folder = self._folder("tables")
        atomic_write(folder / f"{name}.csv", frame.to_csv(index=False))
        atomic_write(folder / f"{name}.md", markdown(frame) + "\n")
        latex = frame.to_latex(index=False, escape=True, float_format="%.3f", na_rep="–", caption=caption)
        atomic_write(folder / f"{name}.tex", latex)
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
        """Write a figure as png and pdf, and its record; returns the figure."""
        folder = self._folder("figures")
        for suffix in ("png", "pdf"):
            _write_figure(figure, folder / f"{name}.{suffix}")
        self._record("figure", name, paper_item, caption, verdict, seeds, data)
        return figure

    def _folder(self, kind: str) -> Path:
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
            **provenance(),
        }
        write_json(self._folder("provenance") / f"{name}.json", record)


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown: numbers to the right, three decimals at most, missing values as a dash."""
    cells = frame.map(_cell)
    aligned = ["right" if pd.api.types.is_numeric_dtype(frame[name]) else "left" for name in frame.columns]
    return str(cells.to_markdown(index=False, colalign=aligned, disable_numparse=True))


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def paper_values(item: str, path: Path = Path("data/paper_numbers.csv")) -> pd.DataFrame:
    """Published values of the items whose names start with ``item``: columns item, row, column, value,
    source.

    Raises ValueError where there are none.
    """
    published = pd.read_csv(path, dtype=str)
    found = published[published.item.str.startswith(item)]
    if found.empty:
        raise ValueError(f"item={item!r}: no published value; {path} has {sorted(published.item.unique())}")
    return found.reset_index(drop=True)


def records(root: Path, profile: str) -> dict[str, dict[str, Any]]:
    """The record of every output of a profile, by name."""
    paths = sorted((root / profile / "provenance").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _describe_run(record: dict[str, Any]) -> str:
    commit = (record.get("commit") or "no commit")[:10] + (" with changes" if record.get("dirty") else "")
    seeds = f", seeds {record['seeds']}" if record["seeds"] else ""
    return f"`notebooks/{record['notebook']}.ipynb`, profile {record['profile']}{seeds}, commit {commit}"


def _show(record: dict[str, Any], folder: Path) -> str:
    name, profile = record["name"], record["profile"]
    lines = [f"### {record['paper_item']}: {name}", "", record["caption"], ""]
    if record["kind"] == "figure":
        lines += [f"![{name}]({profile}/figures/{name}.png)"]
    else:
        lines += [(folder / "tables" / f"{name}.md").read_text(encoding="utf-8").rstrip()]
    lines += ["", f"**Did it hold?** {record['verdict']}", ""]
    lines += [f"<sub>[provenance]({profile}/provenance/{name}.json): {_describe_run(record)}</sub>", ""]
    return "\n".join(lines)


def results_index(root: Path, experiments: Sequence[Experiment]) -> str:
    """The text of ``results/README.md``: every output of every profile but smoke, in the order of the
    notebooks.
    """
    lines = [
        "# Results",
        "",
        "Generated by `python -m sinklora.report` from the records beside each output; do not edit.",
        "",
    ]
    profiles = (
        sorted(p.name for p in root.iterdir() if p.is_dir() and p.name != "smoke") if root.is_dir() else []
    )
    for profile in profiles:
        found = records(root, profile)
        lines += [f"## Profile `{profile}`", ""]
        for experiment in experiments:
            for name in experiment.outputs:
                if name in found:
                    lines += [_show(found[name], root / profile)]
                else:
                    lines += [f"### {name}", "", "Not yet measured.", ""]
    return "\n".join(lines).rstrip() + "\n"


def quote_tables(text: str, root: Path) -> str:
    """Refill every ``<!-- table: PROFILE/NAME -->`` … ``<!-- end of table -->`` block of a text from the
    results.
    """

    def refill(match: re.Match[str]) -> str:
        profile, _, name = match[2].partition("/")
        path = root / profile / "tables" / f"{name}.md"
        body = path.read_text(encoding="utf-8") if path.is_file() else "Not yet measured.\n"
        return f"{match[1]}{body}{match[3]}"

    return QUOTED.sub(refill, text)


def write_index(repository: Path = Path()) -> None:
    """Rewrite ``results/README.md`` and the tables quoted in ``README.md``."""
    root = repository / "results"
    experiments = load_experiments(repository / "notebooks" / "experiments.yaml")
    root.mkdir(exist_ok=True)
    atomic_write(root / "README.md", results_index(root, experiments))
    readme = repository / "README.md"
    atomic_write(readme, quote_tables(readme.read_text(encoding="utf-8"), root))


if __name__ == "__main__":
    write_index()
