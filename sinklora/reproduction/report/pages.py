"""What the pages of a profile show: of every table and figure of the paper its claims and outputs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sinklora.records.row_files import parquet_frame
from sinklora.records.tables import DASH, markdown
from sinklora.reproduction.report.claims import Claim, read_claims
from sinklora.reproduction.report.experiments import Experiment
from sinklora.reproduction.report.paper_items import PAPER_ITEMS, PaperItem
from sinklora.reproduction.report.published import PAPER_NUMBERS, named_items, published_table

BEYOND = "beyond"  # the slug of the page of what is ours

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Output:
    """A table or figure of ours, or measurements: its record, and of a table how many rows it has and, in
    Markdown, the table.

    A table of many rows has no text: its csv is linked, as measurements' parquet is. `verdict` is empty where
    it stands above on the same page.
    """

    record: Record
    verdict: str
    table: str = ""
    rows: int = 0

    @property
    def name(self) -> str:
        """The name of its files."""
        return str(self.record["name"])

    @property
    def is_figure(self) -> bool:
        """Whether it is a picture."""
        return bool(self.record["kind"] == "figure")

    @property
    def file(self) -> str:
        """Where its numbers, or the picture to print, lie in the profile's folder."""
        places = {"figure": "figures/{}.pdf", "table": "tables/{}.csv", "rows": "rows/{}.parquet"}
        return places[self.record["kind"]].format(self.name)

    @property
    def caption(self) -> str:
        """Its caption, on one line."""
        return one_line(self.record["caption"])


@dataclass(frozen=True)
class Page:
    """One item of the paper, or all that is beyond it (`item` is None).

    `published`: its values in the paper, a table in Markdown; empty where there are none on record.
    """

    item: PaperItem | None
    published: str
    claims: Sequence[Claim]
    outputs: Sequence[Output]

    @property
    def title(self) -> str:
        """The item's name."""
        return self.item.name if self.item else "Beyond the paper's tables and figures"

    @property
    def slug(self) -> str:
        """The page's name."""
        return self.item.slug if self.item else BEYOND


def read_records(root: Path, profile: str) -> dict[str, Record]:
    """The record of every output of a profile, by name."""
    paths = sorted((root / profile / "provenance").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def read_pages(
    root: Path, profile: str, experiments: Sequence[Experiment], paper_numbers: Path = PAPER_NUMBERS
) -> list[Page]:
    """The pages of a profile, in the paper's order, what is beyond it last; none where nothing was measured.

    Outputs stand in the order of the notebooks, those of an item alone before those of several, long tables
    and measurements behind all others. An output or claim belongs to every item that it names.
    """
    records = read_records(root, profile)
    if not records:
        return []
    order = [name for experiment in experiments for name in experiment.outputs]
    order += [name for name, record in records.items() if record["kind"] == "rows"]
    known = [records[name] for name in dict.fromkeys(order) if name in records]
    claims = read_claims(root / profile / "claims")
    return [_page(item, known, claims, root / profile, paper_numbers) for item in (*PAPER_ITEMS, None)]


def _page(
    item: PaperItem | None, records: list[Record], claims: list[Claim], folder: Path, paper_numbers: Path
) -> Page:
    own = [record for record in records if _belongs(record["paper_item"], item)]
    own.sort(key=lambda record: item is not None and record["paper_item"] != item.name)
    published = published_table(item.name, paper_numbers) if item else ""
    shown = sorted(_outputs(own, folder), key=lambda output: not (output.is_figure or output.table))
    return Page(item, published, [claim for claim in claims if _belongs(claim.item, item)], shown)


def _belongs(phrase: str, item: PaperItem | None) -> bool:
    return item.is_named_in(phrase) if item else not named_items(phrase)


def _outputs(records: Sequence[Record], folder: Path) -> Iterator[Output]:
    said: set[str] = set()
    for record in records:
        verdict = one_line(record["verdict"])
        new = "" if verdict in said else verdict
        said.add(verdict)
        if record["kind"] == "figure":
            yield Output(record, new)
            continue
        if record["kind"] == "rows":
            file = folder / "rows" / f"{record['name']}.parquet"
            yield Output(record, new, rows=len(parquet_frame(file)))
            continue
        written = folder / "tables" / f"{record['name']}.md"
        text = written.read_text(encoding="utf-8").rstrip("\n") if written.is_file() else ""
        yield Output(record, new, text, len(pd.read_csv(written.with_suffix(".csv"))))


def one_line(text: str) -> str:
    """Text on one line, so that it cannot start a heading, a list or a table."""
    return " ".join(text.split())


def described_record(record: Record) -> str:
    """Who made an output, and where its numbers come from, in one line."""
    seeds = f", seeds {', '.join(map(str, record['seeds']))}" if record["seeds"] else ""
    text = f"notebook {record['notebook']}, profile {record['profile']}{seeds}; {_described_code(record)}"
    if runs := record.get("runs"):
        commits = ", ".join((commit or "not recorded")[:12] for commit in runs["commits"])
        text += f"; made of {runs['count']} runs (commits: {commits})"
    return text


def _described_code(record: Record) -> str:
    commit = f"commit {record['commit'][:10]}" if record.get("commit") else "no commit"
    if not record.get("dirty"):
        return commit
    changed = record.get("changed_files")
    names = ", ".join(changed) if changed else "files whose names were not recorded"
    return f"{commit}, but for changes in {names}"


def in_short(claim: Claim) -> str:
    """The numbers of a claim; where it has none what it was counted on, or its outcome."""
    if claim.estimate is None:
        return claim.n or claim.outcome
    ends = ""
    if claim.low is not None and claim.high is not None:
        ends = f" ({claim.written(claim.low)} to {claim.written(claim.high)})"
    return f"{claim.written(claim.estimate)}{ends} {claim.unit}".rstrip()


def claims_table(claims: Sequence[Claim]) -> str:
    """Claims in Markdown, a line each."""
    lines = [
        {
            "model": claim.model or DASH,
            "claim": f"{claim.sentence}{' (in our words)' if claim.restated else ''}"
            f"{' (headline: decides the verdict)' if claim.headline else ''}",
            "outcome": claim.outcome + (f": {claim.reason}" if claim.reason else ""),
            "estimate (95 % interval)": DASH if claim.estimate is None else in_short(claim),
            "n": claim.n or DASH,
            "numbers in": claim.table or DASH,
        }
        for claim in claims
    ]
    return markdown(pd.DataFrame(lines))
