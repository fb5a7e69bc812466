"""The scoreboard, the pages of the items and the report in one file, made of records and claims."""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from sinklora.records.tables import markdown
from sinklora.reproduction.report.claims import Claim
from sinklora.reproduction.report.experiments import Experiment, load_experiments
from sinklora.reproduction.report.index import UNMEASURED, all_pages, page_text, results_index
from sinklora.reproduction.report.outputs import Report
from sinklora.reproduction.report.pages import BEYOND, Page, described_record
from sinklora.reproduction.report.paper_items import PAPER_ITEMS
from sinklora.reproduction.report.published import published_table
from sinklora.reproduction.report.single_page import html_report
from sinklora.reproduction.report.verdict_rows import NO_CLAIM, NOT_MEASURED, Score, scoreboard

OUTPUTS = ("picture", "values", "long", "ours", "lacking", "trials")
EXPERIMENTS = (Experiment("09_test", "x", {"full": {}}, OUTPUTS),)
HELD = Claim("Table 7", "both help", "held", 0.31, 0.25, 0.37, "nats a token", "5 seeds", "values", "small")
REAL = Claim("Table 7", "both help", "not decided", 0.01, -0.1, 0.12, model="SmolLM2", restated=True)

RUN = {"run": "sf-1", "spec_sha256": "0" * 64, "commit": "b" * 40, "dirty": True, "changed_files": ["a.py"]}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """A figure and a table of Table 7, a long table of it and of Fig. 1, and a table of ours."""
    report = Report("09_test", "full", {}, tmp_path)
    figure, axis = plt.subplots(figsize=(1, 1))
    axis.plot([1, 2])
    report.figure("picture", figure, paper_item="Table 7", caption="Drawn.", verdict="See the table.")
    frame = pd.DataFrame({"a|b": ["1 | 2"], "nats": [1.25]})
    facts = {"caption": "Two\n\n# lines.", "verdict": "See the table.", "runs": [RUN]}
    report.table("values", frame, paper_item="Table 7", **facts)  # type: ignore[arg-type]
    many = pd.DataFrame({"nats": range(151)})
    report.table(
        "long", many, paper_item="Table 7, Fig. 1", caption="Every <i>.", verdict="Raw.", seeds=[0, 1]
    )
    report.rows("trials", many, paper_item="Table 7", caption="Every trial.")
    report.table("ours", frame, paper_item="Sweeps (ours)", caption="Swept.", verdict="Not the paper's.")
    Report("09_test", "smoke", {}, tmp_path).table(
        "lacking", frame, paper_item="Table 7", caption="", verdict="smoke"
    )
    return report


def check_links(text: str, folder: Path) -> None:
    """What a text in a folder links to is there; the scoreboard is written last."""
    links = [(folder / link).resolve() for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert [link for link in links if link.name != "README.md" and not link.is_file()] == []


def pages_of(report: Report, slug: str, experiments: Sequence[Experiment] = EXPERIMENTS) -> Page:
    [page] = [page for page in all_pages(report.root, experiments)["full"] if page.slug == slug]
    return page


def test_the_items_are_those_of_the_paper_in_its_order() -> None:
    numbered = [f"{kind} {number}" for kind in ("Table", "Fig.") for number in range(1, 10)]
    assert [item.name for item in PAPER_ITEMS] == numbered
    assert PAPER_ITEMS[9].slug == "fig1" and PAPER_ITEMS[9].is_named_in("Figs. 1 and 2")
    assert not PAPER_ITEMS[0].is_named_in("Table 10, Fig. 1")
    assert PAPER_ITEMS[4].published() == "4.4 hours against 4.7"


def test_published_values_are_a_table() -> None:
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in published_table("Table 5").splitlines()
    ]
    assert lines[0] == ["published", "100% KV"] and lines[2:] == [["Full", "4.7"], ["H2O", "4.4"]]
    assert published_table("Fig. 1").count("1.8") == 2
    assert published_table("Table 9") == ""


def test_a_page_shows_its_outputs_long_ones_last(report: Report) -> None:
    page = pages_of(report, "table7")
    assert [output.name for output in page.outputs] == ["picture", "values", "trials", "long"], (
        "long is of two"
    )
    text = page_text(page)
    assert text.startswith("# Table 7\n") and text.count("\n# ") == 0
    assert "![picture](../figures/picture.png)" in text
    assert markdown(pd.DataFrame({"a|b": ["1 | 2"], "nats": [1.25]})) in text
    assert "\nTwo # lines.\n" in text and "151 rows: [csv](../tables/long.csv)" in text
    assert "151 rows: [parquet](../rows/trials.parquet)" in text
    assert text.count("See the table.") == 1, "the same verdict is told once"
    assert "**Verdict:** –" in text, "nothing is decided without a claim"
    assert "[provenance](../provenance/values.json)" in text and "[runs](../made_of/values.csv)" in text
    check_links(text, report.root / "full" / "pages")


def test_what_names_no_item_is_beyond_the_paper(report: Report) -> None:
    assert [output.name for output in pages_of(report, BEYOND).outputs] == ["ours"]
    assert [output.name for output in pages_of(report, "fig1").outputs] == ["long"]


def test_claims_stand_on_the_page_and_the_scoreboard(report: Report) -> None:
    report.claims([HELD, REAL])
    text = page_text(pages_of(report, "table7"))
    assert "+0.31 (+0.25 to +0.37) nats a token" in text and "both help (in our words)" in text
    assert "**Verdict:** –" not in text
    score = {line.item.name: line for line in scoreboard(all_pages(report.root, EXPERIMENTS))}
    seven = score["Table 7"]
    assert seven.small == "+0.31 (+0.25 to +0.37) nats a token"
    assert (seven.real, seven.verdict) == (
        "+0.01 (-0.1 to +0.12)",
        "small: held; real: not decided (in our words)",
    )
    assert seven.published.startswith("perplexity: SF-Attn 8.64")


def test_several_claims_are_counted_and_combined(report: Report) -> None:
    report.claims([Claim("Table 7", "a", "held"), HELD, Claim("Table 7", "c", "did not hold")])
    [seven] = [
        line for line in scoreboard(all_pages(report.root, EXPERIMENTS)) if line.item.name == "Table 7"
    ]
    assert seven.small == "+0.31 (+0.25 to +0.37) nats a token; 2 more"
    assert seven.verdict == "held in part"


def test_the_number_shown_is_of_a_claim_with_the_items_outcome(report: Report) -> None:
    undecided = replace(HELD, sentence="shorter", outcome="not decided", estimate=-8.9)
    lost = replace(HELD, sentence="longer", outcome="did not hold", estimate=-9.4)
    report.claims([undecided, lost])
    score = {line.item.name: line for line in scoreboard(all_pages(report.root, EXPERIMENTS))}
    assert score["Table 7"].small == "-9.4 (+0.25 to +0.37) nats a token; 1 more"
    assert score["Table 7"].verdict == "did not hold"
    report.claims([undecided, HELD, lost])  # no claim by itself is held in part: the first that is decided
    [seven] = [
        line for line in scoreboard(all_pages(report.root, EXPERIMENTS)) if line.item.name == "Table 7"
    ]
    assert (seven.small, seven.verdict) == ("+0.31 (+0.25 to +0.37) nats a token; 2 more", "held in part")


def test_the_papers_own_claim_is_shown_before_ours_and_the_headline_before_all(report: Report) -> None:
    def seven() -> Score:
        return next(
            line for line in scoreboard(all_pages(report.root, EXPERIMENTS)) if line.item.name == "Table 7"
        )

    ours = replace(HELD, sentence="in our words", estimate=0.9, restated=True)
    report.claims([ours, HELD])
    assert seven().small == "+0.31 (+0.25 to +0.37) nats a token; 1 more"
    headline = replace(HELD, sentence="the share", outcome="did not hold", estimate=0.42, headline=True)
    report.claims([ours, HELD, headline])
    assert seven().small == "+0.42 (+0.25 to +0.37) nats a token; 2 more"
    assert seven().verdict == "did not hold"
    assert "the share (headline: decides the verdict)" in page_text(pages_of(report, "table7"))


def test_the_scoreboard_says_why_a_number_decides_nothing(report: Report) -> None:
    why = "there is little to share"
    report.claims([replace(HELD, outcome="not decided", reason=why), replace(HELD, sentence="b", reason=why)])
    score = {line.item.name: line for line in scoreboard(all_pages(report.root, EXPERIMENTS))}
    assert f"nats a token ({why}); 1 more" in score["Table 7"].small


def test_the_scoreboard_says_what_is_not_scored_and_not_measured(report: Report) -> None:
    pages = all_pages(report.root, EXPERIMENTS)
    score = {line.item.name: line for line in scoreboard(pages)}
    assert (score["Table 7"].small, score["Table 7"].real) == (NO_CLAIM, NOT_MEASURED)
    assert (score["Table 7"].verdict, score["Table 1"].small) == ("–", NOT_MEASURED)
    text = results_index(pages, EXPERIMENTS)
    assert text.count("| **") == len(PAPER_ITEMS)
    assert "`lacking` (notebook 09_test)" in text and "smoke" not in text
    assert all(f"[full](full/pages/{item.slug}.md)" in text for item in PAPER_ITEMS)
    assert UNMEASURED in page_text(pages_of(report, "table1"))
    assert UNMEASURED not in page_text(pages_of(report, "table7"))


def test_a_record_names_its_commit_and_what_was_changed() -> None:
    record = {"notebook": "02", "profile": "full", "seeds": [0, 1], "commit": "a" * 40, "dirty": False}
    assert described_record(record) == "notebook 02, profile full, seeds 0, 1; commit aaaaaaaaaa"
    changed = {**record, "dirty": True, "changed_files": ["sinklora/cli.py", "new.py"]}
    assert described_record(changed).endswith("commit aaaaaaaaaa, but for changes in sinklora/cli.py, new.py")
    assert described_record({**record, "dirty": True}).endswith("files whose names were not recorded")
    runs = {"count": 3, "commits": ["b" * 40, None]}
    told = described_record({**record, "runs": runs})
    assert told.endswith("made of 3 runs (commits: bbbbbbbbbbbb, not recorded)")


class Elements(HTMLParser):
    """Checks that elements are closed in order, and notes identifiers, addresses and links."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            kept = {"id": self.ids, "src": self.sources, "href": self.links}.get(name)
            if kept is not None:
                kept.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_report(text: str) -> Elements:
    """Well-formed, every item there, nothing fetched, every picture a whole PNG."""
    found = Elements(text)
    assert {item.slug for item in PAPER_ITEMS} | {BEYOND} <= set(found.ids)
    assert len(set(found.ids)) == len(found.ids)
    assert {link for link in found.links if link[0] != "#"} == set()
    assert {link[1:] for link in found.links} <= set(found.ids)
    for source in found.sources:
        kind, _, content = source.partition(",")
        picture = base64.b64decode(content, validate=True)
        assert (
            kind == "data:image/png;base64"
            and picture.startswith(b"\x89PNG")
            and picture.endswith(b"IEND\xaeB`\x82")
        )
    assert "url(" not in text and "@import" not in text and "<script" not in text
    assert 'name="viewport"' in text
    return found


def test_the_report_holds_everything_and_escapes_it(report: Report) -> None:
    report.claims([HELD])
    pages = all_pages(report.root, EXPERIMENTS)
    text = html_report(report.root / "full", pages["full"], scoreboard(pages))
    assert len(check_report(text).sources) == 1
    assert "Every &lt;i&gt;." in text and "1 | 2" in text and "+0.31 (+0.25 to +0.37)" in text
    assert text.count("151 rows, in tables/long.csv") == 1, "an output of two items is shown once"
    assert text.count('Shown under <a href="#output-long">Table 7</a>.') == 1, "the first of them has it"


def test_on_a_phone_the_cells_of_a_row_stand_below_each_other_with_their_headings(report: Report) -> None:
    report.claims([HELD])
    pages = all_pages(report.root, EXPERIMENTS)
    text = html_report(report.root / "full", pages["full"], scoreboard(pages))
    assert "@media (max-width: 700px)" in text and "content: attr(data-label)" in text
    scores, claims = re.findall(r'<table class="[^"]*stacked">.*?</table>', text, re.DOTALL)
    rows = re.findall(r"<tr>(<td.*?)</tr>", scores)
    assert len(rows) == len(PAPER_ITEMS)
    for row in rows:  # item and claim need none
        labels = re.findall(r'data-label="([^"]+)"', row)
        assert labels == ["published", "ours, small", "ours, real", "verdict"]
    [row] = re.findall(r"<tr>(<td.*?)</tr>", claims)
    assert re.findall(r'data-label="([^"]+)"', row) == re.findall(r"<th[^>]*>([^<]+)<", claims)


def test_the_committed_results_are_told_as_they_are() -> None:
    experiments, root = load_experiments(), Path("results")
    pages = all_pages(root, experiments)
    assert (root / "README.md").read_text(encoding="utf-8") == results_index(pages, experiments)
    check_links(results_index(pages, experiments), root)
    for profile, given in pages.items():
        folder = root / profile
        texts = {f"{page.slug}.md": page_text(page) for page in given}
        assert {path.name: path.read_text(encoding="utf-8") for path in folder.glob("pages/*")} == texts
        for text in texts.values():
            check_links(text, folder / "pages")
        html = (folder / "report.html").read_text(encoding="utf-8")
        assert html == html_report(folder, given, scoreboard({profile: given}))
        check_report(html)
        assert len(html) < 6 * 2**20
        known = {name for experiment in experiments for name in experiment.outputs}
        names = {path.stem for path in folder.glob("provenance/*.json")} & known
        assert {output.name for page in given for output in page.outputs} >= names
        for path in folder.glob("claims/*.json"):
            assert json.loads(path.read_text(encoding="utf-8"))
