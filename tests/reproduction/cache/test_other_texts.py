"""Replay after text of other kinds: what is read, and that kinds are told apart."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sinklora.reproduction.cache.other_texts import (
    TEXT,
    in_words,
    measure_texts,
    text_claims,
    text_kinds,
    text_values,
)
from sinklora.reproduction.cache.replay_study import ReplayStudy
from sinklora.reproduction.cache.study import PERPLEXITY
from sinklora.reproduction.cache.text_study import FACTS_LATER, TextStudy, passages_of_kind
from sinklora.train.sources import CorpusSpec

SMALL = TextStudy("data/base", scored_tokens=4, passages=1, per_document=2, fact_passages=1, facts=2)
KINDS = ("source code", "prose with 3 facts of one shape", "prose repeated 4 times")


def study_in(folder: Path) -> ReplayStudy:
    (folder / "texts" / "test").mkdir(parents=True)
    sentences = " ".join(f"Line {number} says nothing of it." for number in range(400))
    (folder / "texts" / "test" / "one.txt").write_text(sentences)
    return ReplayStudy(SMALL, CorpusSpec(f"dir:{folder / 'texts'}", "test"), (240,), (0,), (0.2,))


def test_a_repeated_passage_is_its_first_quarter_four_times() -> None:
    corpus = SimpleNamespace(names=["a", "b"], documents=lambda: [np.arange(101), np.arange(200, 301)])
    repeated = replace(SMALL, kind="repeated")
    first, second = passages_of_kind(repeated, corpus, 10, 2)  # type: ignore[arg-type]
    start = int(first.ids[0])
    assert first.ids.tolist() == [start, start + 1, start + 2] * 3 + [start]
    assert (first.document, second.document) == ("a", "b") and second.ids[0] == 200 + start
    plain, _ = passages_of_kind(SMALL, corpus, 10, 2)  # type: ignore[arg-type]
    assert (np.diff(plain.ids) == 1).all()


def test_every_kind_is_read_asked_and_claimed(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    code = CorpusSpec(study.corpus.source, "test")
    kinds = text_kinds(study, code, 3)
    assert tuple(kinds) == KINDS and tuple(text_kinds(study, None, 3)) == KINDS[1:]
    assert [(k.text.kind, k.text.facts, k.text.per_document) for k in kinds.values()] == [
        ("code", 2, 1),
        ("alike", 3, 2),
        ("repeated", 2, 2),
    ]
    assert re.search("one shape: after 240 tokens 1 passages, and one draw of 3 facts", in_words(kinds))
    rows = measure_texts(kinds, runs=tmp_path / "runs")
    assert list(rows.attrs["data"]) == list(KINDS) and rows.attrs["runs"]
    later = rows[(rows.measure == FACTS_LATER) & (rows.policy == "replay")]
    assert later.groupby(TEXT, sort=False).size().to_dict() == dict(zip(KINDS, (2, 3, 2), strict=True))
    assert later[later[TEXT] == KINDS[1]].kind.unique() == "number"
    nats = rows[(rows.measure == PERPLEXITY) & (rows.policy == "full")].set_index(TEXT).value
    assert list(nats.index) == [KINDS[0], KINDS[2]], "prose is measured elsewhere"
    assert nats[KINDS[2]] < nats[KINDS[0]], "what has been read three times is no surprise"
    written = text_values(rows).written()
    assert list(written.columns[:3]) == [TEXT, "prompt", "measure"] and set(written[TEXT]) == set(KINDS)
    of_one = rows[(rows[TEXT] == KINDS[0]) & (rows.policy == "h2o") & (rows.measure == PERPLEXITY)]
    shown = text_values(rows).frame.query(
        f"{TEXT} == @KINDS[0] and policy == 'h2o' and measure == @PERPLEXITY"
    )
    assert shown.value.item() == pytest.approx(np.exp(of_one.value.mean()))
    claims = text_claims(rows, "a model", "a table")
    told = pd.Series([next(k for k in KINDS if k in claim.sentence) for claim in claims]).value_counts()
    assert told.to_dict() == {KINDS[0]: 10, KINDS[1]: 6, KINDS[2]: 10}
    assert not any(claim.headline for claim in claims)
