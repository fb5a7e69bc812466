"""The scoreboard: every table and figure of the paper in a line, with the numbers of our claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sinklora.records.tables import DASH
from sinklora.reproduction.names import EMBEDDED, RANDOM
from sinklora.reproduction.report.claims import Claim, deciding, together
from sinklora.reproduction.report.pages import Output, Page, in_short
from sinklora.reproduction.report.paper_items import PAPER_ITEMS, PaperItem
from sinklora.reproduction.report.published import PAPER_NUMBERS

SMALL = (
    "",
    "small",
    "small base",
    EMBEDDED,
    RANDOM,
)  # what claims call models that were made for this reproduction

OWN = ("data/base", "runs/")  # where those lie

NOT_MEASURED = f"{DASH} not measured"

NO_CLAIM = f"{DASH} see page"  # something was measured, and no claim computed of it


@dataclass(frozen=True)
class Score:
    """One line: numbers of small and of real models, in short, and what became of the item's claims.

    `profiles`: those that have a page of it; it says what the paper claims and published, also where nothing
    of it is measured.
    """

    item: PaperItem
    published: str
    small: str
    real: str
    verdict: str
    profiles: Sequence[str]

    @property
    def ours(self) -> str:
        """The numbers of both in one cell, each named where there are two."""
        measured = {"small": self.small, "real": self.real}
        kept = {name: cell for name, cell in measured.items() if cell != NOT_MEASURED}
        if len(kept) == 2:
            return "; ".join(f"{name}: {cell.removeprefix(f'{DASH} ')}" for name, cell in kept.items())
        return next(iter(kept.values()), NOT_MEASURED)


def is_small(claim: Claim) -> bool:
    """Whether a claim is about a model that was made for this reproduction, not about a published one."""
    return claim.model in SMALL or claim.model.startswith(OWN)


def scoreboard(pages: Mapping[str, Sequence[Page]], paper_numbers: Path = PAPER_NUMBERS) -> list[Score]:
    """A line for each item of the paper, from the pages of each profile."""
    lines = []
    for item in PAPER_ITEMS:
        own = {
            profile: page
            for profile, profile_pages in pages.items()
            for page in profile_pages
            if page.item == item
        }
        claims = [claim for page in own.values() for claim in page.claims]
        outputs = [output for page in own.values() for output in page.outputs]
        small = [claim for claim in claims if is_small(claim)]
        real = [claim for claim in claims if not is_small(claim)]
        line = Score(
            item,
            item.published(paper_numbers) or DASH,
            _cell(small, [output for output in outputs if not _is_real(output)]),
            _cell(real, [output for output in outputs if _is_real(output)]),
            _verdict(small, real),
            list(own),
        )
        lines.append(line)
    return lines


def _is_real(output: Output) -> bool:
    return "packaged_model" in output.record


def _cell(claims: Sequence[Claim], outputs: Sequence[Output]) -> str:
    """The number of the first claim that decides as all of them together do, or else decides anything, why it
    could not be decided where that is so, and how many more there are.
    """
    if not claims:
        return NO_CLAIM if outputs else NOT_MEASURED
    chosen, verdict = deciding(claims), together(claims)
    estimated = [claim for claim in chosen if claim.estimate is not None] or chosen
    alike = [claim for claim in estimated if claim.outcome == verdict]
    decided = [claim for claim in estimated if claim.outcome != "not decided"]
    first = (alike or decided or estimated)[0]
    why = f" ({first.reason})" if first.reason and first.estimate is not None else ""
    return in_short(first) + why + (f"; {len(claims) - 1} more" if len(claims) > 1 else "")


def _verdict(small: Sequence[Claim], real: Sequence[Claim]) -> str:
    if small and real:
        here, there = _outcome(small), _outcome(real)
        return here if here == there else f"small: {here}; real: {there}"
    return _outcome([*small, *real]) if small or real else DASH


def _outcome(claims: Sequence[Claim]) -> str:
    """The outcome of a model's claims together, and whether none of those that decide it is the paper's."""
    restated = all(claim.restated for claim in deciding(claims))
    return together(claims) + (" (in our words)" if restated else "")
