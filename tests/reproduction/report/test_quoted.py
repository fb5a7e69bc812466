"""Numbers, tables and the scoreboard quoted in README.md and docs: filled from the results, up to date."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from sinklora.reproduction.report.experiments import load_experiments
from sinklora.reproduction.report.index import all_pages, quoted, quoting_texts, short_scoreboard
from sinklora.reproduction.report.paper_items import PAPER_ITEMS
from sinklora.reproduction.report.quoted_numbers import (
    END,
    MISSING,
    QUOTED,
    QuotedNumber,
    quote_numbers,
    read_numbers,
)
from sinklora.reproduction.report.quoted_tables import BEGIN_SCORES, END_SCORES, quote_scoreboard
from sinklora.reproduction.report.verdict_rows import NO_CLAIM, NOT_MEASURED, Score

H2O = {"source": "full/tables/facts.csv", "column": "value", "where": {"policy": "h2o"}}
SHARE = QuotedNumber(**H2O, form=".0f", times=100)  # type: ignore[arg-type]
CLAIM = QuotedNumber("full/claims/06.json", "estimate", {"sentence": "it is near"}, ".2f")
NUMBERS = {"facts": SHARE, "near": CLAIM}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Results with one table and one claim."""
    for folder in ("tables", "claims"):
        (tmp_path / "full" / folder).mkdir(parents=True)
    rows = {"policy": ["h2o", "local", "local"], "value": [0.0234, 0.1, 0.2]}
    ends = {"value (low)": [0.0078, None, None], "value (high)": [0.0469, None, None]}
    pd.DataFrame(rows | ends).to_csv(tmp_path / "full" / "tables" / "facts.csv", index=False)
    claim = {
        "sentence": "it is near",
        "outcome": "not decided",
        "estimate": 0.0594,
        "low": -0.02,
        "high": 0.1,
    }
    (tmp_path / "full" / "claims" / "06.json").write_text(json.dumps([claim]))
    return tmp_path


def test_numbers_are_filled_with_the_ends_of_their_intervals_and_stay(root: Path) -> None:
    text = (
        f"gives <!--=facts-->9{END} % (<!--=facts.low-->{END} to <!--=facts.high-->7{END}), <!--=near-->{END}"
    )
    filled = quote_numbers(text, NUMBERS, root)
    assert re.sub("<!--.*?-->", "", filled) == "gives 2 % (1 to 5), 0.06"
    assert quote_numbers(filled, NUMBERS, root) == filled
    assert CLAIM.written(root, "low") == "-0.02"


def test_a_number_can_be_another_unit_or_a_word(root: Path) -> None:
    less = QuotedNumber(**H2O, form=".0f", times=-100, plus=100)  # type: ignore[arg-type]
    assert less.written(root) == "98"
    assert QuotedNumber(CLAIM.source, "outcome", CLAIM.where).written(root) == "not decided"


def test_what_is_not_there_is_said_to_be_missing(root: Path) -> None:
    lacking = [
        {"where": {"policy": "tova"}},
        {"where": {"budget": 0.2}},
        {"column": "share"},
        {"source": "full/tables/none.csv"},
    ]
    for changed in lacking:
        assert QuotedNumber(**{**H2O, **changed}).written(root) == MISSING  # type: ignore[arg-type]
    local = QuotedNumber(**{**H2O, "where": {"policy": "local"}})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"2 rows of full/tables/facts\.csv"):
        local.written(root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"a <!--=fact-->1{END}", "'fact'"),
        ("a <!--=facts-->1", "needs its own"),
        (f"a 1{END}", "needs its own"),
        (f"a <!--=facts-->1\n{END}", "needs its own"),
        (f"a\n<!--=facts.low-->1{END}", "<!--=facts.low-->1.* begins a line"),
    ],
)
def test_wrong_marks_are_named(text: str, words: str, root: Path) -> None:
    with pytest.raises(ValueError, match=words):
        quote_numbers(text, NUMBERS, root)


def test_a_wrong_definition_is_named(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("facts: {source: a.csv, colum: value}\n")
    with pytest.raises((TypeError, ValueError), match="facts"):
        read_numbers(path)
    assert read_numbers(tmp_path / "none.yaml") == {}


def test_the_scoreboard_is_filled_between_its_marks(root: Path) -> None:
    text = f"a\n{BEGIN_SCORES}stale\n{END_SCORES}\nb\n"
    filled = quote_scoreboard(text, "| x |")
    assert filled == f"a\n{BEGIN_SCORES}\n| x |\n\n{END_SCORES}\nb\n"
    assert quote_scoreboard(filled, "| x |") == filled
    assert quote_scoreboard("none\n", "| x |") == "none\n"
    for broken in (BEGIN_SCORES, END_SCORES, f"{END_SCORES}\n{BEGIN_SCORES}"):
        with pytest.raises(ValueError, match="needs its own"):
            quote_scoreboard(broken, "| x |")


def test_a_line_of_the_short_scoreboard_names_small_and_real_where_it_has_both() -> None:
    def line(small: str, real: str) -> str:
        return short_scoreboard([Score(PAPER_ITEMS[0], "", small, real, "held", ["full", "gpu"])])

    assert "[Table 1](results/full/pages/table1.md)" in line("+1", "+2")
    assert "| small: +1; real: +2 |" in line("+1", "+2")
    assert "| +2 " in line(NOT_MEASURED, "+2") and NOT_MEASURED in line(NOT_MEASURED, NOT_MEASURED)
    assert "| small: see page; real: +2 |" in line(NO_CLAIM, "+2")


def test_the_committed_texts_quote_the_committed_results() -> None:
    repository, numbers = Path(), read_numbers()
    pages, used = all_pages(Path("results"), load_experiments()), set()
    texts = {path: path.read_text(encoding="utf-8") for path in quoting_texts(repository)}
    filled = quoted(texts, pages, repository)
    for path, text in texts.items():
        assert filled[path] == text, path
        assert MISSING not in text, path
        used |= {match[1] for match in QUOTED.finditer(text)}
    assert used == set(numbers)
    assert Path("README.md").read_text(encoding="utf-8").count("](results/full/pages/") == len(PAPER_ITEMS)


# What is no result of ours: versions, settings, the level of intervals, what the paper says.
TYPED = {
    "README.md": {"3.11", "2.0", "95 %"},
    "docs/results.md": {"4.5", "11.5", "95 %", "92 %", "39 %", "0.0003", "20 %", "9.09", "9.35"},
    "docs/replay.md": {"95 %", "0.05", "2.5"},
}


@pytest.mark.parametrize("name", TYPED)
def test_no_result_is_typed_by_hand(name: str) -> None:
    text = Path(name).read_text(encoding="utf-8")
    for generated in (rf"{BEGIN_SCORES}.*?{END_SCORES}", "```.*?```", r"\]\([^)]*\)"):
        text = re.sub(generated, "", text, flags=re.DOTALL)
    assert set(re.findall(r"\d+\.\d+|\d+ ?%", QUOTED.sub("", text))) == TYPED[name]
