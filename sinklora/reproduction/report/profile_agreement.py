"""What a run of one's own says of each claim, beside what the committed results say of it."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from sinklora.records.files import atomic_write
from sinklora.records.tables import DASH, markdown
from sinklora.reproduction.report.claims import Claim, read_claims
from sinklora.reproduction.report.experiments import COMMITTED
from sinklora.reproduction.report.pages import in_short

REFERENCE = "full"  # the profile that a run is compared with

PRINTED = ("item", "claim", "model", "this run", "committed")  # what a terminal has room for

IN_WORDS = {  # an outcome of the paper's sentence -> what a run's own numbers do to it
    "held": "confirmed",
    "held in part": "confirmed in part",
    "did not hold": "contradicted",
    "not decided": "not decided",
    "cannot be measured here": "not measured",
}


def agreement(own: Iterable[Claim], committed: Iterable[Claim]) -> pd.DataFrame:
    """One row a claim of `own`: item, claim, model, this run, its numbers, committed, its numbers.

    A claim is found among `committed` by its item, sentence and model; where it is not there, a dash.
    """
    others = {_key(claim): claim for claim in committed}
    lines = []
    for claim in own:
        other = others.get(_key(claim))
        lines.append(
            {
                "item": claim.item,
                "claim": claim.sentence,
                "model": claim.model,
                "this run": IN_WORDS[claim.outcome],
                "numbers": _numbers(claim),
                "committed": IN_WORDS[other.outcome] if other else DASH,
                "committed numbers": _numbers(other) if other else DASH,
            }
        )
    columns = ["item", "claim", "model", "this run", "numbers", "committed", "committed numbers"]
    return pd.DataFrame(lines, columns=columns)


def print_agreement(root: Path, profile: str, committed_in: Path | None = None) -> None:
    """Print the table of a profile's claims; a profile that is not committed has it as `claims.md` too.

    `committed_in`: the results to compare with, unless these are among those of `root`.
    """
    claims, reference = root / profile / "claims", (committed_in or root) / REFERENCE / "claims"
    committed = read_claims(reference) if reference != claims else []
    own = read_claims(claims)
    compared = agreement(own, committed)
    if not committed:
        compared = compared.drop(columns=["committed", "committed numbers"])
    if profile not in COMMITTED:
        atomic_write(root / profile / "claims.md", f"# What became of the claims\n\n{markdown(compared)}\n")
    shown = [name for name in PRINTED if name in compared]
    table = Table(*shown, title=f"Claims, by the numbers of this run (profile {profile})")
    for row in compared[shown].itertuples(index=False):
        table.add_row(*map(str, row))
    Console().print(table)
    counts = compared["this run"].value_counts()
    Console().print(
        "; ".join(f"{word}: {count}" for word, count in counts.items()) or "No claim was computed."
    )


def _key(claim: Claim) -> tuple[str, str, str]:
    return claim.item, claim.sentence, claim.model


def _numbers(claim: Claim) -> str:
    return in_short(claim) if claim.estimate is not None else DASH
