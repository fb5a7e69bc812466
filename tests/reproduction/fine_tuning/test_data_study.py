"""What is shown of the data of fine-tuning: shares, lengths, claims, and the figure's bars and marks."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from documented_package import write_package
from figure_data import lines
from sinklora.reproduction.fine_tuning.data_figures import GREYS, PAPER, data_figure
from sinklora.reproduction.fine_tuning.data_study import (
    OWN_PAGE,
    PLUS,
    SHARE,
    TEST,
    TRAIN,
    composition,
    data_claims,
    data_sets,
    present_books,
    small_set,
)
from sinklora.reproduction.report.published import published_value
from sinklora.train.instructions.dataset_folder import write_dataset
from sinklora.train.instructions.examples import KINDS, MIX, TITLES, mixed_counts
from sinklora.train.instructions.mini import MiniSpec, read_books


def made(total: int, **more: int) -> pd.DataFrame:
    """Examples in the mix; `more` of a kind. The n-th of a kind has 1000 n tokens and an answer of n."""
    rows = [
        {"kind": kind, "source": "s", "licence": "l", "instruction_tokens": 1000 * n, "output_tokens": n}
        for source, kind in KINDS.items()
        for n in range(1, mixed_counts(total)[source] + more.get(kind, 0) + 1)
    ]
    return pd.DataFrame(rows)


SETS = {TRAIN: made(100), TEST: made(50)}


def test_the_mix_is_the_one_on_record() -> None:
    on_record = {name: published_value("Figure 8", TITLES[name], SHARE) for name in MIX}
    assert on_record == {name: share / 10 for name, share in MIX.items()}


def test_the_table_has_shares_and_lengths_of_every_kind() -> None:
    frame = composition(SETS).frame
    assert list(frame["set"]) == [TRAIN] * 4 + [TEST] * 4
    assert list(frame.examples[:4]) == [44, 27, 18, 11]
    assert list(frame[SHARE][:4]) == list(frame["paper (%)"][:4]) == [44.0, 27.0, 18.0, 11.0]
    last = frame.iloc[3]  # 1001, 2002, ... 11011
    assert last["tokens, median"] == 6 * 1001 and last["answer, median"] == 6
    assert last["2048 to 8192 tokens (%)"] == pytest.approx(100 * 6 / 11)  # 3003 to 8008
    written = composition(SETS).written()
    assert written["tokens, median"][3] == "6,006" and written[SHARE][3] == "11.0"


def test_claims_say_what_was_built() -> None:
    [plus] = data_claims(SETS)
    assert plus.outcome == "cannot be measured here" and "data longalpaca-plus" in plus.reason
    [built] = data_claims({PLUS: made(200), **SETS})
    assert built.outcome == "held" and not built.restated
    assert not built.reason and built.n == "200 examples"
    [wrong] = data_claims({PLUS: made(200, summary=1), **SETS})
    assert wrong.outcome == "did not hold"


def test_the_figure_shows_shares_and_lengths() -> None:
    shares, lengths = data_figure(SETS).axes
    drawn = {
        str(group.get_label()): [bar.get_width() for bar in group.patches] for group in shares.containers
    }
    assert drawn == {PAPER: [44, 27, 18, 11], TRAIN: [44, 27, 18, 11], TEST: [44, 28, 18, 10]}
    assert {text.get_text() for text in shares.texts} >= {"44 %", "44", "22", "5"}
    assert [label.get_text() for label in shares.get_yticklabels()][1] == "continuation\n(RedPajama)"
    marks = {str(group.get_label()): group[0] for group in lengths.containers}
    instruction = marks[f"{TRAIN}, long question, instruction_tokens"]
    answer = marks[f"{TRAIN}, long question, output_tokens"]
    assert (instruction.get_xdata()[0], answer.get_xdata()[0]) == (6000, 6)
    assert instruction.get_ydata()[0] == answer.get_ydata()[0]
    assert to_rgb(instruction.get_color()) == to_rgb(GREYS[TRAIN])
    assert lengths.get_xscale() == "log" and not lines(lengths)


def test_lengths_reach_from_the_fifth_to_the_ninety_fifth_percentile() -> None:
    skewed = made(100).assign(instruction_tokens=lambda examples: examples.output_tokens**2)
    lengths = data_figure({TRAIN: skewed}).axes[1]
    [bar] = [
        group
        for group in lengths.containers
        if group.get_label() == f"{TRAIN}, long question, instruction_tokens"
    ]
    [[low, high]] = bar[2][0].get_segments()
    assert (low[0], bar[0].get_xdata()[0], high[0]) == (2.5, 36, 110.5), "of 1, 4, 9, ... 121"


def test_a_built_set_stands_first(tmp_path: Path) -> None:
    folder = tmp_path
    small = {"train": SETS[TRAIN], "test": SETS[TEST]}
    for name, splits in (("small", small), ("plus", {"train": made(90)})):
        words = {"instruction_words": 1, "output_words": 1}
        filled = {split: frame.assign(**words) for split, frame in splits.items()}
        write_dataset(folder / name, filled, title="A set", about=["About it."], record={})
    sets = data_sets(folder / "small", str(folder / "plus"))
    assert list(sets) == [PLUS, TRAIN, TEST] and len(sets[PLUS]) == 90
    assert list(data_sets(folder / "small")) == [TRAIN, TEST]
    assert len(data_figure(sets).axes[0].containers) == 4


def test_the_small_set_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path / "site", "documented_once")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    spec, runs, used = MiniSpec(20, 10, ("documented_once",)), tmp_path / "runs", []
    first = small_set(spec, "data/base", runs=runs, used=used)
    made_at = (first / "train.parquet").stat().st_mtime_ns
    assert small_set(spec, "data/base", runs=runs) == first == used[0]
    assert (first / "train.parquet").stat().st_mtime_ns == made_at
    assert small_set(MiniSpec(20, 10, ("documented_once",), seed=1), "data/base", runs=runs) != first
    assert (data_sets(first)[TRAIN].instruction_tokens > 0).all()


def test_what_a_set_says_of_its_books_is_what_it_is_known_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first sets called all books public domain: that is true of our own page, and found again for it."""
    write_package(tmp_path / "site", "documented_once")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    own = MiniSpec(20, 10, ("documented_once",), OWN_PAGE)
    copied = tmp_path / Path(OWN_PAGE).name
    copied.write_bytes(Path(OWN_PAGE).read_bytes())
    for spec, licence in ((own, "public domain"), (replace(own, books=str(copied)), "not stated")):
        folder = small_set(spec, "data/base", runs=tmp_path / "runs")
        examples = pd.concat(data_sets(folder).values())
        assert set(examples[examples.document == copied.name].licence) == {licence}
        known_by = json.loads((folder / "spec.json").read_text())["spec"]
        assert known_by.get("books_licence", "public domain") == licence
    assert len(list(tmp_path.glob("runs/mini-*/finished.json"))) == 2


def test_books_that_are_not_there_are_the_packages_own_page(tmp_path: Path) -> None:
    assert present_books("") == present_books("no/such/folder") == OWN_PAGE
    assert present_books(str(tmp_path)) == str(tmp_path)
    [page] = read_books(OWN_PAGE)
    assert page.name == "alice.txt" and "Alice" in page.text
