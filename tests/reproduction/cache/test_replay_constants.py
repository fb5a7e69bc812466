"""Replay's constants one at a time: what is tried, and the table from rows by hand."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sinklora.cache.replay import Replay
from sinklora.records.tables import part
from sinklora.reproduction.cache.replay_constants import (
    AS_IT_IS,
    GAINED,
    GRID,
    MORE,
    constants_in_words,
    constants_table,
    measure_constants,
    variants,
)
from sinklora.reproduction.cache.study import PERPLEXITY
from sinklora.reproduction.cache.text_study import FACTS_LATER, TextStudy
from sinklora.train.sources import CorpusSpec

NATS = {AS_IT_IS: 3.0, "decay=0.9": 3.1, "decay=0.99": 2.9}
SHARES = {AS_IT_IS: 0.6, "decay=0.9": 0.4, "decay=0.99": 0.55}


def hand_rows() -> pd.DataFrame:
    lines = []
    for measure, levels in ((PERPLEXITY, NATS), (FACTS_LATER, SHARES)):
        for policy, level in levels.items():
            constant, _, value = policy.partition("=")
            changed = {"constant": constant if value else None, "value of it": float(value or "nan")}
            for item in range(6):
                own = 0.1 * item + 0.01 * (policy == "decay=0.9") * (item % 2)
                line = {"measure": measure, "policy": policy, "budget": 0.2, "item": str(item)}
                lines.append({**line, "cluster": f"book {item // 2}", "value": level + own, **changed})
    return pd.DataFrame(lines)


def test_one_constant_is_changed_at_a_time_and_the_given_one_is_in_the_grid() -> None:
    given = {field.name: field.default for field in fields(Replay)}
    assert all(given[name] in values for name, values in GRID.items())
    made = variants(0.2)
    assert len(made) == sum(len(values) - 1 for values in GRID.values())
    for (name, value), policy in made.items():
        changed = {f.name for f in fields(Replay) if getattr(policy, f.name) != getattr(Replay(0.2), f.name)}
        assert changed == {name} and getattr(policy, name) == value
    assert [value for _, value in variants(0.2, ["decay"])] == [0.9, 0.99]


def test_the_table_is_paired_with_replay_as_it_is() -> None:
    table = constants_table(hand_rows())
    lines = table.frame.set_index("value")
    assert lines.chosen.to_dict() == {0.9: "", 0.97: "chosen", 0.99: ""}
    assert lines.loc[0.97, "perplexity"] == pytest.approx(np.exp(3.25))
    assert np.isnan(lines.loc[0.97, MORE]) and lines.loc[0.97, "facts"] == pytest.approx(0.85)
    assert lines.loc[0.9, MORE] == pytest.approx(0.105) and lines.loc[0.99, MORE] == pytest.approx(-0.1)
    assert lines.loc[0.99, GAINED] == pytest.approx(-0.05)
    assert lines.loc[0.9, part(MORE, "low")] == pytest.approx(0.105)  # documents do not differ
    assert constants_in_words(table) == (
        "decay, chosen 0.97: best 0.99 for perplexity (an end), 0.97 for facts."
    )


def test_it_is_measured_on_passages(tmp_path: Path) -> None:
    (tmp_path / "texts" / "validation").mkdir(parents=True)
    text = " ".join(f"Line {number} says nothing of it." for number in range(200))
    (tmp_path / "texts" / "validation" / "one.txt").write_text(text)
    study = TextStudy(
        "data/base", 240, scored_tokens=4, passages=1, fact_tokens=240, fact_passages=1, facts_at_once=False
    )
    corpus = CorpusSpec(f"dir:{tmp_path / 'texts'}", "validation")
    rows = measure_constants(study, corpus, 0.2, ["sink_tokens"], runs=tmp_path / "runs")
    assert set(rows.policy) == {AS_IT_IS, "sink_tokens=1", "sink_tokens=16"} and rows.attrs["runs"]
    assert rows[rows.policy == AS_IT_IS].constant.isna().all()
    assert constants_table(rows).frame.value.tolist() == [1, 4, 16]
    with pytest.raises(ValueError, match=r"constants=.*'colour'"):
        measure_constants(study, corpus, 0.2, ["colour"], runs=tmp_path / "runs")
