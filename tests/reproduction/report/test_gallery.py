"""The gallery: every committed figure once, with the caption and verdict of its record."""

import json
from pathlib import Path

from sinklora.reproduction.report.experiments import load_experiments
from sinklora.reproduction.report.gallery import gallery_text
from sinklora.reproduction.report.index import all_pages
from sinklora.reproduction.report.pages import Output, Page
from sinklora.reproduction.report.paper_items import PAPER_ITEMS

ROOT = Path(__file__).resolve().parents[3]


def figure(name: str, verdict: str = "It\nheld.") -> Output:
    """A figure whose verdict stands above it on its page already."""
    record = {"name": name, "kind": "figure", "caption": "Drawn\nhere.", "verdict": verdict, "seeds": [0]}
    return Output(record | {"notebook": "09_test", "profile": "full", "commit": "c" * 40}, "")


def test_each_figure_stands_once_below_the_first_item_that_it_belongs_to() -> None:
    both = [Page(item, "", [], [figure("shared"), figure(item.slug, "")]) for item in PAPER_ITEMS[:2]]
    text = gallery_text({"full": both, "gpu": [Page(None, "", [], [figure("ours")])]})
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == [
        "# Gallery",
        "## Table 1",
        "### shared",
        "### table1",
        "## Table 2",
        "### table2",
        "## Beyond the paper's tables and figures, profile `gpu`",
        "### ours",
    ]
    assert (
        "\n\nDrawn here.\n\n![shared](full/figures/shared.png)\n\n**Verdict:** It held.\n\n<sub>[claims"
        in text
    )
    assert "![table1](full/figures/table1.png)\n\n<sub>" in text and "![ours](gpu/figures/ours.png)" in text
    assert "notebook 09_test, profile full, seeds 0; commit cccccccccc</sub>" in text


def test_every_committed_figure_is_there_with_its_caption_and_verdict() -> None:
    experiments = load_experiments(ROOT / "notebooks" / "experiments.yaml")
    text = gallery_text(all_pages(ROOT / "results", experiments, ROOT / "data" / "paper_numbers.csv"))
    committed = sorted((ROOT / "results" / "full" / "figures").glob("*.png"))
    assert len(committed) >= 20
    for path in committed:
        assert text.count(f"(full/figures/{path.name})") == 1, path.name
        record = json.loads((ROOT / "results/full/provenance" / f"{path.stem}.json").read_text("utf-8"))
        assert " ".join(record["caption"].split()) in text and " ".join(record["verdict"].split()) in text
