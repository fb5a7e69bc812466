"""Replay and its nearest rivals after text of other kinds than prose, and with facts that are all alike."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sinklora.records.tables import Column, Table
from sinklora.reproduction.cache.replay_study import (
    ReplayStudy,
    estimates_by_prompt,
    measure_replay,
    replay_claims,
    values_table,
)
from sinklora.reproduction.cache.study import PERPLEXITY
from sinklora.reproduction.cache.text_study import REPEATS
from sinklora.reproduction.report.claims import Claim
from sinklora.train.sources import CorpusSpec

TEXT = "text"  # the column of its kind in words


def text_kinds(study: ReplayStudy, code: CorpusSpec | None, alike_facts: int) -> dict[str, ReplayStudy]:
    """The kinds of text in words, and what is measured of each.

    Files of `code` (a passage of each; None: left out), prose with `alike_facts` facts of one shape in a
    passage, and prose that repeats itself.
    """
    kinds = {"source code": replace(study.of_kind("code", per_document=1), corpus=code)} if code else {}
    kinds[f"prose with {alike_facts} facts of one shape"] = study.of_kind("alike", facts=alike_facts)
    kinds[f"prose repeated {REPEATS} times"] = study.of_kind("repeated")
    return kinds


def in_words(kinds: Mapping[str, ReplayStudy]) -> str:
    """What is read and asked of each kind."""
    return "; ".join(f"{kind}: {study.in_words()}" for kind, study in kinds.items())


def measure_texts(kinds: Mapping[str, ReplayStudy], *, runs: Path = Path("runs")) -> pd.DataFrame:
    """The rows of `measure_replay` of each kind, told apart by the column `TEXT`; in `attrs` data by kind.

    Perplexity of prose is left out where only its facts are of another kind.
    """
    frames = {kind: measure_replay(study, runs=runs) for kind, study in kinds.items()}
    known = {kind: PERPLEXITY for kind, study in kinds.items() if study.text.kind == "alike"}
    parts = [of[of.measure != known.get(kind)].assign(**{TEXT: kind}) for kind, of in frames.items()]
    rows = pd.concat(parts, ignore_index=True)
    used = {run["run"]: run for of in frames.values() for run in of.attrs["runs"]}
    rows.attrs = {"data": {k: of.attrs["data"] for k, of in frames.items()}, "runs": list(used.values())}
    return rows


def text_values(rows: pd.DataFrame) -> Table:
    """The table of `values_table` with the kind of text in front."""
    frames = []
    for kind, of_kind in rows.groupby(TEXT, sort=False):
        frames.append(estimates_by_prompt(of_kind))
        frames[-1].insert(0, TEXT, kind)
    shown = values_table(pd.concat(frames, ignore_index=True))
    return replace(shown, columns=(Column(TEXT), *shown.columns))


def text_claims(rows: pd.DataFrame, model: str, table: str) -> list[Claim]:
    """The claims of `replay_claims` of each kind, none a headline; one correction (Holm) for each kind."""
    return [
        claim
        for kind, of_kind in rows.groupby(TEXT, sort=False)
        for claim in replay_claims(of_kind, model, table, str(kind))
    ]
