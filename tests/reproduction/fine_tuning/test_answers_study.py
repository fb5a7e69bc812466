"""Models asked about documents (Fig. 9): what is asked of whom; tables, claims and marks of the answers."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from transformers import AutoTokenizer

from sinklora.cache.full import Full
from sinklora.evaluate.document_questions import AskingSpec, DocumentQuestion, answer_table
from sinklora.pretrained.loading import load
from sinklora.records.files import json_hash
from sinklora.records.runs import RunDirectory
from sinklora.reproduction.fine_tuning import answers_study
from sinklora.reproduction.fine_tuning.answer_figures import answers_figure
from sinklora.reproduction.fine_tuning.answer_tables import (
    F1,
    LOST,
    NATS,
    answers_table,
    shown_questions,
    side_by_side,
    tuning_rates_table,
)
from sinklora.reproduction.fine_tuning.answers_study import (
    AS_IT_IS,
    FULL_CACHE,
    NOTHING_READ,
    AnswersStudy,
    best_rates,
    cut_documents,
    divided,
    file_of,
    is_valid,
    measure,
    rates_in_words,
    validation_nats,
)
from sinklora.reproduction.fine_tuning.claims import NOT_VALID, answer_claims
from sinklora.train.examples import ExampleSource
from sinklora.train.instruction_spec import InstructionSpec

TUNING = InstructionSpec(
    base="data/base", examples=ExampleSource("jsonl:none.jsonl"), template="llama-2", context=512
)

CACHES = (FULL_CACHE, "H2O", "StreamingLLM", "Replay (ours)", NOTHING_READ)


def question(name: str, document: str = "x = 1") -> DocumentQuestion:
    return DocumentQuestion(name, document, "What?", ("1",))


def rows_of(nats: Mapping[str, tuple[float, ...]], files: int = 12) -> pd.DataFrame:
    """Rows of models by their mean nats under each of CACHES; files differ alike everywhere, two questions
    each.
    """
    lines: list[dict[str, Any]] = []
    for model, by_cache in nats.items():
        for cache, mean in zip(CACHES, by_cache, strict=True):
            for number in range(2 * files):
                own = 0.01 * ((number * 7) % 5 - 2) + 0.001 * len(cache) * (number % 3 - 1)
                line: dict[str, Any] = {
                    "model": model,
                    "seed": None if model == AS_IT_IS else 0,
                    "cache": cache,
                }
                line |= {"question": f"f{number // 2}#{number % 2}", "file": f"f{number // 2}"}
                line |= {"nats_per_token": mean + own, "written": f"{model} {cache}"}
                lines.append({**line, "f1": 0.25 if cache == FULL_CACHE else 0.0, "exact": number < 6})
    return pd.DataFrame(lines).astype({"seed": "Int64"})


BASE = {AS_IT_IS: (2.0, 2.1, 2.5, 2.3, 3.0)}


def outcomes(rows: pd.DataFrame) -> dict[str, str]:
    """Outcome by the beginning of a claim's sentence."""
    claims = answer_claims(rows, "tiny", valid=True)
    return {" ".join(claim.sentence.split()[:5]): claim.outcome for claim in claims}


def test_no_file_is_chosen_by_and_tested_with() -> None:
    asked = [question(f"file{number // 3}#{number}") for number in range(30)]
    validation, test = divided(asked, 8)
    assert len(validation) == 9 and len(test) == 21
    assert not set(map(file_of, validation)) & set(map(file_of, test))
    assert divided(asked, 8) == (validation, test) and divided(asked, 8, seed=1) != (validation, test)
    with pytest.raises(ValueError, match="validation=31: leaves none of 30 questions"):
        divided(asked, 31)


def test_long_documents_lose_their_middle() -> None:
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    text = "".join(f"name_{number} = {number}\n" for number in range(50))
    short, cut = cut_documents([question("a#1"), question("b#2", text)], "data/base", 40)
    assert short.document == "x = 1"
    head, tail = cut.document[:20], cut.document[-20:]
    assert text.startswith(head) and text.endswith(tail) and len(cut.document) < len(text) / 2
    assert len(tokenizer.encode(cut.document, add_special_tokens=False)) == 40


def test_the_best_rate_is_that_of_the_fewest_nats() -> None:
    rows = pd.DataFrame(
        [(AS_IT_IS, None, "a", 1.0)]
        + [("sf", rate, name, nats) for rate, nats in ((1e-4, 3.0), (1e-3, 2.0)) for name in "ab"]
        + [("full", rate, "a", nats) for rate, nats in ((1e-4, 0.5), (1e-3, 2.5))],
        columns=["model", "learning rate", "file", "nats_per_token"],
    )
    chosen = best_rates(rows)
    assert chosen == {"sf": 1e-3, "full": 1e-4}
    assert rates_in_words(rows, chosen).endswith("Best rates lie at an end of those tried: sf, full.")
    frame = tuning_rates_table(rows, chosen).frame
    assert list(frame.chosen) == ["", "", "chosen", "chosen", ""]
    assert frame[NATS].tolist() == [1.0, 3.0, 2.0, 0.5, 2.5]


@pytest.mark.parametrize(("gain", "valid"), [(0.5, True), (0.0, False), (-0.5, False)])
def test_tuning_counts_where_full_attention_surely_helped_on_validation(gain: float, valid: bool) -> None:
    rows = pd.DataFrame(
        [
            (model, rate, f"f{n}", 2 + 0.1 * (n % 3) - lead + 0.01 * (n % 2 if rate else 0))
            for model, rate, lead in ((AS_IT_IS, None, 0), ("full", 1e-4, -9), ("full", 1e-3, gain))
            for n in range(9)
        ],
        columns=["model", "learning rate", "file", "nats_per_token"],
    )
    assert is_valid(rows, {"full": 1e-3}) is valid
    words = rates_in_words(rows, {"full": 1e-3})
    assert words.startswith(
        "Tuning with full attention helps" if valid else "Tuning with full attention does not"
    )
    assert is_valid(rows, {"sf": 1e-3}) is False


def test_the_base_is_asked_with_and_without_the_document(tmp_path: Path) -> None:
    study = AnswersStudy(TUNING, asking=AskingSpec(template="llama-2", answer_tokens=2))
    asked = [question("f#1", "def one(): return 1\n" * 4), question("g#1")]
    rows = measure(study, asked, {}, runs=tmp_path)
    assert (
        list(rows.cache.unique()) == list(CACHES) and set(rows.model) == {AS_IT_IS} and rows.seed.isna().all()
    )
    assert set(rows.file) == {"f", "g"} and len(rows.attrs["runs"]) == 5
    alone = [dataclasses.replace(one, document="") for one in asked]
    wanted = answer_table(
        lambda: load("data/base"), {}, alone, [Full()], study.asking, runs=tmp_path / "apart"
    )
    found = rows[rows.cache == NOTHING_READ]
    assert found.nats_per_token.tolist() == pytest.approx(wanted.nats_per_token.tolist(), abs=1e-4)
    assert rows.nats_per_token.groupby(rows.cache).mean()[FULL_CACHE] != found.nats_per_token.mean()


def test_a_rate_at_which_tuning_diverges_is_infinitely_bad(tmp_path: Path) -> None:
    examples = tmp_path / "two.jsonl"
    examples.write_text("\n".join(json.dumps({"instruction": f"{n}?", "output": "Yes."}) for n in "ab"))
    settings = {"bf16": False, "warmup_steps": 0, "batch_size": 1, "micro_batch_size": 1}
    tuning = dataclasses.replace(TUNING, examples=ExampleSource(f"jsonl:{examples}"), **settings)
    asking = AskingSpec(template="llama-2", answer_tokens=2)
    study = AnswersStudy(tuning, ("full",), rates=(1e30, 1e-4), asking=asking)
    rows = validation_nats(study, [question("f#1"), question("g#1")], runs=tmp_path / "runs")
    assert best_rates(rows) == {"full": 1e-4}
    shown = tuning_rates_table(rows, best_rates(rows)).written()
    assert shown[NATS].tolist()[1] == "diverged" and shown.chosen.tolist() == ["", "", "chosen"]
    hopeless = rows[rows["learning rate"] != 1e-4]
    assert best_rates(hopeless) == {"full": 1e30} and not is_valid(hopeless, {"full": 1e30})


def test_an_unknown_pattern_is_named_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="'sff'"):
        AnswersStudy(TUNING, ("full", "sff"))


def test_a_cache_keeps_most_of_what_the_document_brings_or_not() -> None:
    keeps, ahead = "with H2O at least 80", "with H2O right answers are"
    ours, before = "with Replay (ours) at least", "with Replay (ours) right answers"
    # Of the nat that the document brings H2O keeps 0.9, Replay 0.7; H2O is 0.4 nats ahead of StreamingLLM.
    expected = {keeps: "held", ahead: "held", ours: "did not hold", before: "did not hold"}
    assert outcomes(rows_of(BASE)) == expected
    worse = outcomes(rows_of({AS_IT_IS: (2.0, 2.6, 2.3, 2.1, 3.0)}))
    assert worse == {keeps: "did not hold", ahead: "did not hold", ours: "held", before: "held"}
    useless = answer_claims(rows_of({AS_IT_IS: (3.0,) * 5}), "tiny", valid=True)
    assert useless[0].headline and [claim.headline for claim in useless].count(True) == 1
    for claim in (useless[0], useless[2]):
        assert claim.outcome == "not decided" and "brings nothing" in claim.reason


def test_a_sparse_pattern_gains_what_full_attention_does_or_not() -> None:
    rows = rows_of({**BASE, "full": (1.0, 1, 1, 1, 1), "sf": (1.05, 1, 1, 1, 1), "s2": (1.6, 1, 1, 1, 1)})
    claims = {claim.sentence: claim for claim in answer_claims(rows, "tiny", valid=True)}
    shares = {s.split(",")[0]: c for s, c in claims.items() if "of that" in s}
    assert {name: claim.outcome for name, claim in shares.items()} == {
        "tuned with SF-Attn": "held",
        "tuned with S²-Attn without the leak": "did not hold",
    }
    assert shares["tuned with SF-Attn"].estimate == pytest.approx(0.95, abs=0.01)
    behind = [c.estimate for s, c in claims.items() if s.startswith("tuned with full attention, right")]
    assert behind == pytest.approx([0.05, 0.6], abs=0.01)
    assert len(claims) == 4 + 1 + 2 * 2
    nothing = rows_of({**BASE, "full": (2.0, 2, 2, 2, 2), "sf": (1.5, 1, 1, 1, 1)})
    of_tuning = [claim for claim in answer_claims(nothing, "tiny", valid=False) if "tuned" in claim.sentence]
    assert {(claim.outcome, claim.reason) for claim in of_tuning} == {("not decided", NOT_VALID)}
    assert of_tuning[1].estimate is None  # a share of nothing


def test_the_table_has_every_model_under_every_cache() -> None:
    frame = answers_table(rows_of({**BASE, "sf": (1.0, 1.5, 1.5, 1.5, 4.0)})).frame
    assert list(frame.cache) == list(CACHES) * 2 and set(frame.questions) == {24} and set(frame.files) == {12}
    assert frame[NATS].tolist() == pytest.approx([2.0, 2.1, 2.5, 2.3, 3.0, 1.0, 1.5, 1.5, 1.5, 4.0], abs=0.01)
    lost = frame[LOST]
    assert lost.isna().tolist() == [True, False, False, False, False] * 2
    assert lost[[1, 2, 9]].tolist() == pytest.approx([0.1, 0.5, 3.0], abs=0.01)
    assert frame[F1].tolist() == [25.0, 0, 0, 0, 0] * 2 and set(frame["exact (%)"]) == {25.0}
    assert (frame[f"{NATS} (low)"] < frame[NATS]).all() and (frame[NATS] < frame[f"{NATS} (high)"]).all()


def test_shown_questions_are_the_quartiles_of_the_base() -> None:
    rows = rows_of(BASE)
    asked = rows[rows.cache == FULL_CACHE].sort_values(["nats_per_token", "question"]).question.tolist()
    assert shown_questions(rows) == [asked[6], asked[12], asked[17]]
    shown = side_by_side(rows, {name: ("right",) for name in asked}).frame
    assert list(shown.cache) == list(CACHES) * 3 and set(shown.right) == {"right"}
    assert list(shown.wrote[:2]) == [f"{AS_IT_IS} {FULL_CACHE}", f"{AS_IT_IS} H2O"]


def test_the_figure_has_a_mark_with_its_interval_for_every_cache() -> None:
    rows = rows_of({**BASE, "sf": (1.0, 1.5, 1.5, 1.5, 4.0)})
    frame = answers_table(rows).frame
    figure = answers_figure(rows)
    for axis, heading in zip(figure.axes, (NATS, F1), strict=True):
        assert [bars.get_label() for bars in axis.containers] == list(CACHES)
        for cache, bars in zip(CACHES, axis.containers, strict=True):
            mine = frame[frame.cache == cache]
            marks, _, (spans,) = bars.lines  # type: ignore[attr-defined]
            assert list(marks.get_xdata()) == pytest.approx(mine[heading].tolist())
            ends = [segment[:, 0].tolist() for segment in spans.get_segments()]
            wanted = mine[[f"{heading} (low)", f"{heading} (high)"]].to_numpy().tolist()
            assert [sorted(pair) for pair in ends] == [pytest.approx(pair) for pair in wanted]
            assert [round(float(y)) for y in marks.get_ydata()] == [0, 1]
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [AS_IT_IS, "SF-Attn"]


@pytest.fixture
def trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int]]:
    """Pattern, rate and seed of every training, none of which trains."""
    asked: list[tuple[str, float, int]] = []

    def trained(spec: InstructionSpec, **_: Any) -> RunDirectory:
        asked.append((spec.pattern, spec.learning_rate, spec.seed))
        run = RunDirectory(tmp_path, {"of": asked[-1]}, "tuned")
        run.reuse_or(lambda folder: [])
        return run

    monkeypatch.setattr(answers_study, "train", trained)
    monkeypatch.setattr(answers_study, "load_trained", lambda *_: load("data/base").model)
    return asked


ASKING = AskingSpec(template="llama-2", answer_tokens=2)


def test_what_rates_were_chosen_by_is_recorded(
    tmp_path: Path, trainings: list[tuple[str, float, int]]
) -> None:
    """The runs of tuning and the answers of each model."""
    study = AnswersStudy(TUNING, ("sf",), (1e-4, 1e-3), asking=ASKING)
    rows = validation_nats(study, [question("f#1")], runs=tmp_path)
    assert len(rows) == 3
    names = [record["run"].partition("-")[0] for record in rows.attrs["runs"]]
    assert sorted(names) == ["answers"] * 3 + ["tuned"] * 2
    assert trainings == [("sf", 1e-4, 0), ("sf", 1e-3, 0)]


def test_each_pattern_is_tuned_at_its_own_rate_with_every_seed(
    tmp_path: Path, trainings: list[tuple[str, float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(load: Any, identity: Any, asked: Any, *_: Any, **__: Any) -> pd.DataFrame:
        names = [one.id for one in asked]
        return pd.DataFrame({"question": names, "policy": "full", "budget": 1.0, "by": json_hash(identity)})

    monkeypatch.setattr(answers_study, "answer_table", answered)
    study = AnswersStudy(TUNING, ("full", "sf"), seeds=(0, 1), asking=ASKING)
    rows = measure(study, [question("f#1")], {"full": 1e-4, "sf": 1e-3}, runs=tmp_path)
    expected = [("full", 1e-4, 0), ("full", 1e-4, 1), ("sf", 1e-3, 0), ("sf", 1e-3, 1)]
    assert trainings == expected
    models = rows[["model", "seed", "by"]].drop_duplicates()
    assert list(zip(models.model[1:], models.seed[1:], strict=True)) == [(p, s) for p, _, s in expected]
    assert models.model.iloc[0] == AS_IT_IS and models.by.is_unique, "five models, each asked by itself"
