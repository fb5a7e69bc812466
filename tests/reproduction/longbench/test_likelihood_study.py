"""How likely right answers are by cache: rows by hand, and rows of a model that are measured once."""

from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from sinklora import H2O
from sinklora.evaluate.longbench.records import Record
from sinklora.records.tables import part
from sinklora.reproduction.longbench.likelihood_study import (
    ABOVE,
    NATS,
    NO_DOCUMENT,
    likelihood_claims,
    likelihood_table,
    measure_likelihoods,
    real_records,
)
from sinklora.reproduction.model_under_test import ModelUnderTest
from sinklora.reproduction.retrieval.bounded_caches import CANNOT, FULL, REPLAY

T3 = 3.182446305  # Student's quantile at 97.5 %, of three degrees of freedom


def rows_of(dataset: str, **nats: list[float]) -> pd.DataFrame:
    """Two questions a document, which differ by a nat."""
    return pd.DataFrame(
        {
            "dataset": dataset,
            "question": f"{place}/{number}",
            "document": f"{dataset} {place}",
            "cache": {"replay": REPLAY, "nothing": NO_DOCUMENT}.get(cache, cache),
            "nats": value + number - 0.5,
        }
        for cache, values in nats.items()
        for place, value in enumerate(values)
        for number in range(2)
    )


TOLD = rows_of(
    "qasper",
    full=[2.0, 3.0, 4.0, 3.0],
    H2O=[2.5, 3.6, 4.4, 3.5],
    StreamingLLM=[3.5, 4.6, 5.4, 4.4],
    replay=[2.01, 3.0, 4.02, 3.01],
    nothing=[5.0, 6.0, 7.0, 6.1],
)
SILENT = rows_of("qmsum", full=[2.0, 3.0], H2O=[9.0, 9.1], nothing=[2.1, 2.8])


def test_the_table_has_nats_and_what_a_cache_adds() -> None:
    table = likelihood_table(pd.concat([TOLD, SILENT]))
    lines = table.frame.set_index(["data set", "cache"])
    assert lines.loc[("qasper", "H2O"), NATS] == pytest.approx(3.5)
    assert lines.loc[("qasper", "H2O"), ABOVE] == pytest.approx(0.5)
    error = pd.Series([0.5, 0.6, 0.4, 0.5]).sem()
    assert lines.loc[("qasper", "H2O"), part(ABOVE, "high")] == pytest.approx(0.5 + T3 * error)
    assert lines.loc[("qasper", FULL), "documents"] == 4 and lines.loc[("qasper", FULL), "n"] == 8
    assert pd.isna(lines.loc[("qasper", FULL), ABOVE])
    assert set(lines.loc["qasper"].remark) == {""} and set(lines.loc["qmsum"].remark) == {CANNOT}


def test_claims_are_over_documents_that_bring_something() -> None:
    claims = {claim.sentence: claim for claim in likelihood_claims(pd.concat([TOLD, SILENT]), "a model")}
    ahead = claims["right answers are likelier with H2O than with StreamingLLM"]
    assert (ahead.outcome, ahead.estimate) == ("held", pytest.approx(0.975))
    assert ahead.n == "4 documents, 1 of 2 sets"
    ours = claims[f"right answers are likelier with {REPLAY} than with H2O"]
    assert (ours.outcome, ours.estimate) == ("held", pytest.approx(0.49))
    near = "with {} right answers are as likely as with the full cache, to 0.05 nats a token"
    assert claims[near.format(REPLAY)].outcome == "held"
    assert claims[near.format("H2O")].outcome == "did not hold"
    assert len(claims) == 4, "nothing is claimed of Local, which was not measured"
    [cannot] = likelihood_claims(SILENT, "a model")
    assert cannot.outcome == "cannot be measured here"


def test_real_sets_come_alone_where_there_are_any() -> None:
    assert list(real_records({"qasper": [], "small_lcc": []})) == ["qasper"]
    assert list(real_records({"small_lcc": []})) == ["small_lcc"]


def test_every_cache_and_no_document_are_measured_once(tmp_path: Path) -> None:
    text = "The gardener counted the trees twice and wrote the number down. " * 10
    records = [Record("How many?", text, ("forty",), 3, "qasper", "en", None, f"{n}") for n in range(2)]
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    loaded: list[int] = []

    def load() -> object:
        loaded.append(1)
        return AutoModelForCausalLM.from_pretrained("data/base")

    subject = ModelUnderTest("base", None, {"name": "base"}, load)  # type: ignore[arg-type]
    measure = partial(
        measure_likelihoods, subject, tokenizer, {"qasper": records}, max_length=600, answer_tokens=4
    )
    caches = {FULL: None, "H2O": H2O(0.1)}
    rows = measure(caches, runs=tmp_path, progress=False)
    assert rows.groupby("cache", sort=False).size().to_dict() == {FULL: 2, "H2O": 2, NO_DOCUMENT: 2}
    assert rows.groupby("cache").nats.first().nunique() == 3 and loaded == [1]
    assert len(rows.attrs["runs"]) == 3 and rows.attrs["data"]["qasper"]["records"] == 2
    again = measure(caches, runs=tmp_path, progress=False)
    pd.testing.assert_frame_equal(again, rows)
    assert loaded == [1]
