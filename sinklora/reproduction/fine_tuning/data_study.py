"""The data of fine-tuning: LongAlpaca-plus where it was built, and a small set in its mix (Fig. 8)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import AutoTokenizer

from sinklora.pretrained.fetch import model_path
from sinklora.records.runs import RunDirectory
from sinklora.records.tables import Column, Number, Table
from sinklora.reproduction.report.claims import Claim
from sinklora.reproduction.report.published import published_value
from sinklora.train.instructions.dataset_folder import RECORD, read_split
from sinklora.train.instructions.documentation import described_package
from sinklora.train.instructions.examples import KINDS, TITLES, mixed_counts
from sinklora.train.instructions.mini import MiniSpec, read_books
from sinklora.train.instructions.mini_folder import build_mini
from sinklora.train.tokens import tokenizer_hash

PLUS, TRAIN, TEST = "LongAlpaca-plus", "small set, train", "small set, test"

SHARE = "examples (%)"  # as the paper's shares are on record

RULES = 1  # another number, another set: raised where the rules by which it is made change

OWN_PAGE = "sinklora/reproduction/demo/alice.txt"

PUBLIC_DOMAIN = "public domain"  # as our own page is


def present_books(place: str) -> str:
    """A folder of books, or the page of one that the package has where it is not on this machine."""
    return place if place and Path(place).is_dir() else OWN_PAGE


def small_set(spec: MiniSpec, tokenizer: str, *, runs: Path, used: list[Path] | None = None) -> Path:
    """The folder of the small set, with the tokens of a model's tokenizer counted; made once.

    It is found again by its spec, the versions of its packages, its books and the tokenizer. It is added to
    `used`.
    """
    if spec.books == OWN_PAGE:
        spec = replace(spec, books_licence=PUBLIC_DOMAIN)
    loaded = AutoTokenizer.from_pretrained(model_path(tokenizer))
    key = {
        "rules": RULES,
        "spec": _known_by(spec),
        "packages": [described_package(package) for package in spec.packages],
        "books": {book.name: book.sha256 for book in read_books(spec.books)},
        "tokenizer": tokenizer_hash(loaded),
    }

    def work(folder: Path) -> list[str]:
        kept = {path.name for path in folder.iterdir()}
        build_mini(spec, out=folder, tokenizer=loaded)
        return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in kept)

    folder = RunDirectory(runs, key, "mini").reuse_or(work)
    if used is not None:
        used.append(folder)
    return folder


def _known_by(spec: MiniSpec) -> dict[str, Any]:
    """Its fields, but where the books lie on this machine."""
    fields = asdict(replace(spec, books=""))
    if not spec.books or spec.books_licence == PUBLIC_DOMAIN:
        del fields["books_licence"]  # the first sets said so of all books, and are known without it
    return fields


def data_record(small: Path) -> dict[str, Any]:
    """What results say of the small set: its record, without the code and machine that made it."""
    record = json.loads((small / RECORD).read_text(encoding="utf-8"))
    about = ("spec", "packages", "entries_left_out_as_repeated", "tokenizer_sha256")
    return {name: record[name] for name in about}


def data_sets(small: Path, plus: str = "") -> dict[str, pd.DataFrame]:
    """The splits that are shown, by their names; `plus`: the folder of LongAlpaca-plus, "" without one."""
    built = {PLUS: read_split(Path(plus))} if plus else {}
    return {**built, TRAIN: read_split(small, "train"), TEST: read_split(small, "test")}


def composition(sets: Mapping[str, pd.DataFrame]) -> Table:
    """A line for each set and kind of example: how many there are, their share beside the paper's, and the
    median and 95th percentile of their lengths in tokens.
    """
    lines = []
    for name, examples in sets.items():
        for source, kind in KINDS.items():
            of_kind = examples[examples.kind == kind]
            lengths = of_kind.instruction_tokens + of_kind.output_tokens
            lines.append(
                {
                    "set": name,
                    "kind": kind,
                    "in the paper's place of": TITLES[source],
                    "examples": len(of_kind),
                    SHARE: 100 * len(of_kind) / len(examples),
                    "paper (%)": published_value("Figure 8", TITLES[source], SHARE),
                    "tokens, median": float(lengths.median()),
                    "tokens, 95 %": float(lengths.quantile(0.95)),
                    "answer, median": float(of_kind.output_tokens.median()),
                    "2048 to 8192 tokens (%)": 100 * float(lengths.between(2048, 8192).mean()),
                }
            )
    frame = pd.DataFrame(lines)
    names = [str(name) for name in frame.columns]
    return Table(frame, [_column(name) for name in names])


def _column(name: str) -> Column:
    """How a column of the composition is written."""
    if name in ("set", "kind", "in the paper's place of"):
        return Column(name)
    return Number(name, {SHARE: ".1f", "paper (%)": "g"}.get(name, ",.0f"))


def data_claims(sets: Mapping[str, pd.DataFrame]) -> list[Claim]:
    """Whether LongAlpaca-plus has the paper's counts, where it was built.

    That the small set has its shares is how that is made, and no finding.
    """
    about_plus = Claim(
        "Fig. 8",
        "LongAlpaca-plus is mixed of Natural Questions, RedPajama, BookSum and LongQA in the paper's shares",
        "cannot be measured here",
        table="sft_data",
        reason="needs the files of the four sources; `sinklora data longalpaca-plus` mixes them",
    )
    if PLUS in sets:
        about_plus = replace(about_plus, outcome=_outcome(sets[PLUS]), n=_counted(sets[PLUS]), reason="")
    return [about_plus]


def _outcome(examples: pd.DataFrame) -> str:
    wanted = {KINDS[source]: count for source, count in mixed_counts(len(examples)).items()}
    return "held" if examples.kind.value_counts().to_dict() == wanted else "did not hold"


def _counted(examples: pd.DataFrame) -> str:
    return f"{len(examples):,} examples"
