"""All results of a profile in one HTML file that needs nothing beside it: figures lie in it."""

import base64
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from sinklora.records.tables import read_markdown
from sinklora.reproduction.report.pages import Page, claims_table, described_record
from sinklora.reproduction.report.verdict_rows import Score


def html_report(folder: Path, pages: Sequence[Page], scores: Sequence[Score]) -> str:
    """The report of one profile: `folder` is `results/PROFILE`, `scores` its lines of the scoreboard.

    An output that belongs to several items is shown under the first.
    """

    def picture(name: str) -> str:
        return base64.b64encode((folder / "figures" / f"{name}.png").read_bytes()).decode("ascii")

    environment = Environment(
        loader=PackageLoader("sinklora.reproduction.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html")
    return template.render(
        profile=folder.name,
        pages=pages,
        scores=scores,
        places={output.name: page.title for page in reversed(pages) for output in page.outputs},
        picture=picture,
        read_markdown=read_markdown,
        claims_table=claims_table,
        described_record=described_record,
    )
