"""LongBench: scores worked by hand, their averages, tasks, and the command that scores a folder."""

import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from helpers import assert_close
from sinklora.evaluate.longbench.commands import commands
from sinklora.evaluate.longbench.metrics import category_table, code_similarity, score, score_folder
from sinklora.evaluate.longbench.predictions import truncate_middle
from sinklora.evaluate.longbench.tasks import CATEGORIES, DATASETS, SMALL, library_metrics, task_of

ONE_LINE = st.text(st.sampled_from("abc (x)=+é"), max_size=30)


# --- scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "prediction", "answers", "expected"),
    [
        # Without article and full stop "cat sat on mat": 2 of 4 words right, 2 of 2 found; 2·(1/2)·1/(3/2).
        ("qasper", "The cat sat on a MAT.", ["a cat sat"], 200 / 3),
        # Only an article and punctuation: nothing is left to compare.
        ("narrativeqa", "The!", ["the"], 0),
        ("hotpotqa", "", ["Paris"], 0),
        # The second reference is the best: 1 of 1 word right, 1 of 2 found; the first has none.
        ("2wikimqa", "Paris", ["London", "Paris, France"], 200 / 3),
        # A repeated word counts as often as the reference has it: 1 of 3 right, 1 of 1 found.
        ("musique", "yes yes yes", ["yes"], 50),
        # Only the first line counts, after empty ones …
        ("triviaqa", "\n\nParis\nPassage: London", ["Paris"], 100),
        # … but not here: 1 of 3 words right, 1 of 1 found.
        ("multifieldqa_en", "\n\nParis\nPassage: London", ["Paris"], 50),
        # 我 爱 北京 and 我 爱 上海: 2 of 3 right, 2 of 3 found; the punctuation is no word.
        ("multifieldqa_zh", "我爱北京。", ["我爱上海！"], 200 / 3),
        ("multifieldqa_zh", "", ["上海"], 0),
        # Longest common subsequence "the cat": 2 of 3 words each way.
        ("gov_report", "the cat sat", ["the cat ran"], 200 / 3),
        # Subsequence "a c": 2 of 4 and 2 of 2.
        ("qmsum", "a b c d", ["x y", "a c"], 200 / 3),
        ("multi_news", "", ["a c"], 0),
        # Case and punctuation count in ROUGE: "The" and "sat," are other words, "cat" is 1 of 3 each way.
        ("multi_news", "The cat sat,", ["the cat sat"], 100 / 3),
        # Words by jieba: 我 爱 of 我 爱 北京, 2 of 3 each way.
        ("dureader", "我爱北京", ["我爱上海"], 200 / 3),
        ("vcsum", "", ["我爱上海"], 0),
        ("samsum", "Ann is late\nDialogue: no", ["Ann is late"], 100),
        # One of two numbers is right.
        ("passage_count", "There are 3 of 5", ["3"], 50),
        ("passage_count", "three", ["3"], 0),
        ("passage_count", "30", ["3"], 0),
        ("passage_retrieval_en", "Paragraph 12", ["Paragraph 12"], 100),
        ("passage_retrieval_en", "12, 3, 12 or 4", ["Paragraph 12"], 50),
        ("passage_retrieval_en", "Paragraph 1", ["Paragraph 12"], 0),
        ("passage_retrieval_en", "", ["Paragraph 12"], 0),
        ("passage_retrieval_zh", "是段落7。", ["段落7"], 100),
        ("passage_retrieval_zh", "段落7和段落8", ["段落7"], 50),
        # Comments and markup are skipped; 7 of 8 letters agree: 2·7/16 = 87.5 %, rounded to the even 88.
        ("lcc", "```python\n# next\n// next\nreturn x\nreturn y", ["return y"], 88),
        ("lcc", "\n\n    return y", ["    return y"], 100),
        # A line of three blanks is not empty, so it is the one compared: 2·1/(3 + 8) = 18 %.
        ("lcc", "   \nreturn y", ["return y"], 18),
        ("repobench-p", "# only a comment", ["return y"], 0),
        ("repobench-p", "", ["return y"], 0),
        ("repobench-p", "abcd", ["xxxx", "abce"], 75),
        ("small_lcc", "abcd", ["abce"], 75),
    ],
)
def test_scores_worked_by_hand(dataset: str, prediction: str, answers: list[str], expected: float) -> None:
    assert_close(score(dataset, [prediction], [answers]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("Location", "Location", 100),
        # Both labels occur; the one within the right label does not count against it.
        ("Location city", "Location city", 100),
        # Both occur, and neither is within the right label: a half.
        ("Location city", "Location", 50),
        ("Location or Date", "Date", 50),
        ("Date\nType: Location", "Date", 100),
        ("date", "Date", 0),
        ("", "Date", 0),
        # "North" and "West" lie within the label, but LongBench's loop skips "West" as it removes "North".
        ("North West", "North West", 50),
    ],
)
def test_labels_worked_by_hand(prediction: str, answer: str, expected: float) -> None:
    labels = ["Location", "Location city", "Date", "North", "West", "North West"]
    assert_close(score("trec", [prediction], [[answer]], labels), expected, atol=1e-9)


def test_chinese_labels_on_the_first_line() -> None:
    labels = ["军事", "农业、农村"]
    assert score("lsht", ["\n军事\n新闻：农业、农村"], [["军事"]], labels) == 100
    assert score("lsht", ["军事新闻：农业、农村"], [["军事"]], labels) == 50


def test_a_score_is_the_mean_over_predictions() -> None:
    # 100, 0 and 50.
    assert score("musique", ["yes", "no", "yes yes yes"], [["yes"], ["yes"], ["yes"]]) == 50


@given(ONE_LINE, ONE_LINE)
def test_code_similarity_is_fuzzywuzzys_on_difflib(line: str, reference: str) -> None:
    fuzz = library_metrics().fuzz
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz, "SequenceMatcher", difflib.SequenceMatcher)  # whatever else is installed
        assert code_similarity(line, reference) == fuzz.ratio(line, reference) / 100


def test_a_deep_caller_gets_the_same_score() -> None:
    # Without a common word ROUGE-L goes through 300 + 300 words, a frame each.
    prediction, answer = (" ".join(f"{letter}{i}" for i in range(300)) for letter in "ab")
    shared = f"same {prediction}", f"same {answer}"

    def at_depth(depth: int) -> float:
        if depth:
            return at_depth(depth - 1)
        return score("gov_report", [shared[0]], [[shared[1]]])

    # 1 of 301 words each way.
    assert_close(at_depth(0), 100 / 301, atol=1e-5)
    assert at_depth(500) == at_depth(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense", ["a"], [["a"]]), "dataset='nonsense'"),
        (("qasper", [], []), "0 predictions"),
        (("qasper", ["a"], [["a"], ["b"]]), "1 predictions and 2"),
        (("qasper", ["a"], ["a"]), r"answers\[0\]"),
        (("qasper", ["a"], [[]]), r"answers\[0\]"),
        (("trec", ["a"], [["a"]]), "all_classes=None"),
        (("passage_retrieval_en", ["3"], [["3"]]), r"answers\[0\] has '3'; .*'Paragraph 3'"),
        (("passage_retrieval_zh", ["3", "3"], [["段落3"], ["Paragraph 3"]]), r"answers\[1\] .*'段落3'"),
    ],
)
def test_what_cannot_be_scored_is_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(*arguments)


# --- averages -----------------------------------------------------------------------------------------------


def row(table: pd.DataFrame, label: str) -> pd.Series:
    return table.set_index("Data sets").loc[label]


def test_the_published_categories_give_the_published_average() -> None:
    # GPT-3.5-Turbo in LongLoRA's table: (39.8 + 38.7 + 26.5 + 67.1 + 54.1 + 37.8) / 6 = 44.0.
    published = dict(zip(CATEGORIES, (39.8, 38.7, 26.5, 67.1, 54.1, 37.8), strict=True))
    english = {name: published[d.category] for name, d in DATASETS.items() if d.language != "zh"}
    table = category_table(english)
    assert list(table.columns) == ["Data sets", "Avg", *CATEGORIES]
    assert_close(float(row(table, "English")["Avg"]), 44.0, atol=1e-9)
    for category, value in published.items():
        assert_close(float(row(table, "English")[category]), value, atol=1e-9)


def test_categories_weigh_the_same_whatever_their_size() -> None:
    scores = {name: 60.0 if d.category == "Code Completion" else 0.0 for name, d in DATASETS.items()}
    assert row(category_table(scores), "All")["Avg"] == 10


def test_there_are_no_partial_averages() -> None:
    scores = {name: 50.0 for name, d in DATASETS.items() if d.language != "zh" and name != "qasper"}
    table = category_table(scores)
    english, everything = row(table, "English"), row(table, "All")
    assert english[["Avg", "Single-Doc QA"]].isna().all()
    assert (english[[c for c in CATEGORIES if c != "Single-Doc QA"]] == 50).all()
    assert everything["Code Completion"] == 50
    assert everything["Few-shot Learning"] != everything["Few-shot Learning"]
    assert list(table["Data sets"]) == ["English", "All"]


def test_generated_sets_have_a_row_of_their_own() -> None:
    table = category_table(dict.fromkeys(SMALL, 30.0))
    assert row(table, "Small (generated)")["Avg"] == 30
    assert row(table, "English").isna().all()


@pytest.mark.parametrize("scores", [{"nonsense": 1.0}, {"lcc": 101.0}, {"lcc": float("nan")}])
def test_impossible_scores_are_named(scores: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"nonsense|scores\['lcc'\]"):
        category_table(scores)


# --- tasks --------------------------------------------------------------------------------------------------


def test_the_layout_of_longbench() -> None:
    assert len(DATASETS) == 21
    assert [len(names) for names in CATEGORIES.values()] == [4, 4, 4, 4, 2, 3]
    assert sum(d.language == "zh" for d in DATASETS.values()) == 5
    assert {DATASETS[base].category for base in SMALL.values()} == set(CATEGORIES)
    lengths = {name: task_of(name).max_new_tokens for name in DATASETS}
    assert (lengths["gov_report"], lengths["qasper"], lengths["lcc"], lengths["hotpotqa"]) == (
        512,
        128,
        64,
        32,
    )


@pytest.mark.parametrize("dataset", DATASETS)
def test_prompts_hold_context_and_question_as_they_are(dataset: str) -> None:
    prompt = task_of(dataset).prompt("{{ context }} {x}\n", "{{ input }}?\n")
    assert "{{ context }} {x}\n" in prompt
    assert "\\n" not in prompt
    asks = dataset not in ("gov_report", "multi_news", "vcsum", "passage_count", "lcc")
    assert ("{{ input }}?\n" in prompt) == asks


def test_prompts_end_as_longbenchs_do() -> None:
    assert task_of("lcc").prompt("x = 1\n", "").endswith("\nx = 1\nNext line of code:\n")
    assert task_of("repobench-p").prompt("a\n", "b\n").endswith("\na\nb\nNext line of code:\n")
    assert task_of("passage_count").prompt("a", "").endswith("\n\nThe final answer is: ")
    assert task_of("samsum").prompt("a", "b").endswith("examples.\n\na\n\nb")
    assert task_of("trec").prompt("a", "b").endswith("questions.\n\na\nb")


def test_a_missing_harness_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"sinklora\[eval\]"):
        task_of.__wrapped__("lcc")
    with pytest.raises(ImportError, match=r"sinklora\[eval\]"):
        library_metrics.__wrapped__()


@given(st.lists(st.integers(), max_size=40), st.integers(2, 50))
def test_truncation_keeps_both_ends(ids: list[int], limit: int) -> None:
    half = limit // 2
    shortened = [*ids[:half], *ids[len(ids) - half :]]
    assert truncate_middle(ids, limit) == (ids if len(ids) <= limit else shortened)


@pytest.mark.parametrize("limit", [1, 0, -3])
def test_truncation_to_less_than_two_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"limit={limit}"):
        truncate_middle([1, 2, 3], limit)


# --- command line -------------------------------------------------------------------------------------------


def command(*arguments: object) -> Any:
    return CliRunner().invoke(commands, [str(argument) for argument in arguments], env={"COLUMNS": "400"})


def write_official(folder: Path, dataset: str, *rows: dict[str, Any]) -> None:
    lines = [json.dumps({"all_classes": None, "length": 5} | r, ensure_ascii=False) for r in rows]
    (folder / f"{dataset}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_a_folder_of_predictions_is_scored(tmp_path: Path) -> None:
    write_official(tmp_path, "lcc", {"pred": "abcd", "answers": ["abce"]}, {"pred": "", "answers": ["x"]})
    write_official(tmp_path, "repobench-p", {"pred": "x", "answers": ["x"]})
    write_official(tmp_path, "trec", {"pred": "B\nA", "answers": ["B"], "all_classes": ["A", "B"]})
    (tmp_path / "result.json").write_text("{}")
    table = score_folder(tmp_path)
    assert list(table["dataset"]) == ["trec", "lcc", "repobench-p"]
    assert list(table["score"]) == [100, 37.5, 100]
    assert list(table["predictions"]) == [1, 2, 1]
    result = command("score", tmp_path)
    assert result.exit_code == 0
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.output.splitlines()]
    assert ["lcc", "Code Completion", "code_sim", "2", "37.500"] in cells
    # Code (37.5 + 100) / 2; no other category is complete.
    assert ["English", "–", "–", "–", "–", "–", "68.750", "–"] in cells


def test_a_folder_that_cannot_be_scored_says_why(tmp_path: Path) -> None:
    assert "no files named" in command("score", tmp_path).output
    (tmp_path / "lcc.jsonl").write_text('{"pred": "a", "answers": ["a"]}\n{"pred": "a", "answ')
    result = command("score", tmp_path)
    assert result.exit_code != 0 and "lcc.jsonl, line 2" in result.output
    (tmp_path / "lcc.jsonl").rename(tmp_path / "lcd.jsonl")
    assert "dataset='lcd'" in command("score", tmp_path).output
    (tmp_path / "lcd.jsonl").unlink()
    right, wrong = ({"pred": "3", "answers": [answer]} for answer in ("Paragraph 3", "3"))
    write_official(tmp_path, "passage_retrieval_en", right, wrong)
    result = command("score", tmp_path)
    assert result.exit_code == 2 and "passage_retrieval_en.jsonl, line 2: 'answers' has '3'" in result.output
