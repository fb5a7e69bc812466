"""Table 6 under several caches: which questions, their scores, chance, differences over documents."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from longbench_records import write_records
from sinklora.evaluate.longbench.records import Prediction, Record
from sinklora.evaluate.longbench.tasks import SMALL
from sinklora.records.tables import part
from sinklora.reproduction.longbench.cache_comparison import (
    LESS,
    cache_table,
    cache_verdict,
    question_scores,
    real_and_generated_sets,
    spread_over_documents,
)
from sinklora.reproduction.retrieval.bounded_caches import CANNOT
from sinklora.train.sources import CorpusSpec

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]


def record(number: int, context: str, dataset: str = "qasper") -> Record:
    answer = WORDS[number % len(WORDS)]
    return Record("which?", context, (answer,), 3, dataset, "en", None, f"{dataset}{number}")


def answered(records: list[Record], texts: list[str]) -> list[Prediction]:
    return [
        Prediction(text, r.answers, r.all_classes, r.length, r.id)
        for r, text in zip(records, texts, strict=True)
    ]


T3 = 3.182446305  # Student's quantile at 97.5 %, of three degrees of freedom

QASPER = [record(number, f"document {number // 2}") for number in range(8)]
HOTPOT = [record(number, f"text {number}", "hotpotqa") for number in range(8)]
SETS = {"qasper": QASPER, "hotpotqa": HOTPOT}
MADE = {
    # Of qasper the full cache knows all and H2O the first six; of hotpotqa nobody knows anything.
    "full": {"qasper": answered(QASPER, WORDS), "hotpotqa": answered(HOTPOT, ["none"] * 8)},
    "H2O": {"qasper": answered(QASPER, [*WORDS[:6], "x", "x"]), "hotpotqa": answered(HOTPOT, WORDS)},
    "Local": {"qasper": answered(QASPER, ["x"] * 8), "hotpotqa": answered(HOTPOT, ["none"] * 8)},
}


def test_documents_come_before_second_questions() -> None:
    chosen = spread_over_documents([record(n, "abbbc"[n]) for n in range(5)], 4)
    assert [r.id for r in chosen] == ["qasper0", "qasper1", "qasper4", "qasper2"]
    assert len(spread_over_documents(QASPER, 99)) == 8


def test_scores_stand_beside_chance_and_the_full_cache() -> None:
    scores = question_scores(SETS, MADE)
    assert scores.groupby(["dataset", "cache"]).score.mean().to_dict() == {
        ("qasper", "full"): 100,
        ("qasper", "H2O"): 75,
        ("qasper", "Local"): 0,
        ("hotpotqa", "full"): 0,
        ("hotpotqa", "H2O"): 100,
        ("hotpotqa", "Local"): 0,
    }
    lines = cache_table(scores, MADE).frame.set_index(["data set", "cache"])
    h2o = lines.loc[("qasper", "H2O")]
    assert (h2o.n, h2o.documents, h2o.score, h2o[LESS]) == (8, 4, 75, 25)
    # One document of four is lost as a whole, with both its questions: a standard error of 25.
    assert (h2o[part(LESS, "low")], h2o[part(LESS, "high")]) == pytest.approx((25 - 25 * T3, 25 + 25 * T3))
    assert 0 < h2o[part("score", "low")] < 75 < h2o[part("score", "high")] < 100
    assert 5 < lines.loc[("qasper", "full"), "chance"] < 20  # one of eight shuffled answers is right
    assert lines.remark.to_dict() == {
        ("qasper", "full"): "",
        ("qasper", "H2O"): "",
        ("qasper", "Local"): "at chance",
        **{("hotpotqa", name): CANNOT for name in MADE},
    }


def test_the_verdict_leaves_out_what_cannot_be_measured() -> None:
    scores = question_scores(SETS, MADE)
    said = cache_verdict(scores, cache_table(scores, MADE))
    assert said.startswith("Over 1 data sets, 8 questions: ")
    assert "full not surely different from H2O (+25.0, -54.6 to 104.6)" in said
    assert "full above Local (+100.0, 100.0 to 100.0)" in said
    assert "H2O not surely different from Local (+75.0" in said
    tail = "with these, means over all 16 questions are full 50.0, H2O 87.5, Local 0.0."
    assert said.endswith(f"Cannot be measured with this model: hotpotqa; {tail}")
    nothing = scores[scores.dataset == "hotpotqa"]
    made = {cache: {"hotpotqa": by_set["hotpotqa"]} for cache, by_set in MADE.items()}
    alone = cache_verdict(nothing, cache_table(nothing, made))
    assert alone.startswith("Cannot be measured with this model: hotpotqa; ")


def test_generated_sets_stand_in_for_categories_without_documents(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    corpus = CorpusSpec("installed:", "test", 4_000, total_characters=1_500_000)
    write_records(tmp_path / "qasper.jsonl", QASPER)
    write_records(tmp_path / "gov_report.jsonl", [record(0, "a", "gov_report")])
    sets = real_and_generated_sets(tmp_path, tokenizer, corpus, examples=2, tokens=700)
    left = ["small_hotpotqa", "small_trec", "small_lcc", "small_passage_retrieval_en"]
    assert list(sets) == ["qasper", "gov_report", *left]
    assert [r.id for r in sets["qasper"]] == ["qasper0", "qasper2"] and len(sets["gov_report"]) == 1
    assert all(len(sets[name]) == 2 for name in left)
    assert list(real_and_generated_sets(None, tokenizer, corpus, examples=1, tokens=700)) == list(SMALL)
    (tmp_path / "qmsum.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"qmsum\.jsonl, line 1"):
        real_and_generated_sets(tmp_path, tokenizer, corpus, examples=1, tokens=700)
