"""Test texts: taken in turn from the groups, none twice, none that training has seen."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from sinklora.reproduction.extension.texts import TextSet, choose_texts, described_texts, texts_of
from sinklora.train.near_duplicates import SeenText
from sinklora.train.sources import CorpusSpec, Document

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def text(number: int, words: int = 200) -> str:
    chance = np.random.default_rng(number)
    return " ".join("".join(chance.choice(list(LETTERS), 5)) for _ in range(words))


def documents(*groups: tuple[str, int]) -> list[Document]:
    numbers = iter(range(100))
    return [
        Document(f"{group}/{place}.py", text(next(numbers)))
        for group, count in groups
        for place in range(count)
    ]


def texts(pieces: int, per_document: int = 1, source: str = "installed:a,b,c") -> TextSet:
    return TextSet(CorpusSpec(source), pieces, 50, per_document)


def test_groups_give_one_piece_each_in_turn(tokenizer: AutoTokenizer) -> None:
    found = choose_texts(texts(6), documents(("a", 9), ("b", 1), ("c", 3)), tokenizer, SeenText())
    assert sorted(piece.group for piece in found.pieces) == ["a", "a", "a", "b", "c", "c"]
    assert {len(piece.ids) for piece in found.pieces} == {50}
    assert {int(piece.ids[0]) for piece in found.pieces} == {tokenizer.bos_token_id}
    assert len({piece.name for piece in found.pieces}) == 6


def test_books_give_several_pieces(tokenizer: AutoTokenizer) -> None:
    books = [Document(f"book {number}", text(number, 400)) for number in range(2)]
    found = choose_texts(texts(6, per_document=4, source="dir:books"), books, tokenizer, SeenText())
    assert sorted(piece.group for piece in found.pieces) == ["book 0"] * 3 + ["book 1"] * 3


def test_what_repeats_is_left_out_and_named(tokenizer: AutoTokenizer) -> None:
    given = documents(("a", 3), ("b", 2))
    given.append(Document("b/again.py", given[0].text))
    found = choose_texts(texts(4), given, tokenizer, SeenText([given[3].text]))
    assert {piece.name.partition(":")[0] for piece in found.pieces} == {
        "a/0.py",
        "a/1.py",
        "a/2.py",
        "b/1.py",
    }
    assert set(found.near_duplicates) == {"b/0.py", "b/again.py"}


def test_too_few_are_told(tokenizer: AutoTokenizer) -> None:
    with pytest.raises(ValueError, match=r"pieces=9: .* holds 4 of 50 tokens"):
        choose_texts(texts(9), documents(("a", 4)), tokenizer, SeenText())


def test_chosen_texts_are_read_back(tokenizer: AutoTokenizer, tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for number in range(3):
            (tmp_path / part / f"{number}.txt").write_text(text(number if part == "train" else 10 + number))
    (tmp_path / "test" / "seen.txt").write_text(text(1))
    sets = {"A": TextSet(CorpusSpec(f"dir:{tmp_path}", "test"), 3, 50)}
    train = CorpusSpec(f"dir:{tmp_path}")
    first = texts_of(sets, tokenizer, [train], runs=tmp_path / "runs")["A"]
    assert first.near_duplicates == ("test/seen.txt",)
    [kept] = (tmp_path / "runs").glob("texts-*/finished.json")
    written = kept.stat().st_mtime_ns
    again = texts_of(sets, tokenizer, [train], runs=tmp_path / "runs")["A"]
    assert again.sha256 == first.sha256 and kept.stat().st_mtime_ns == written
    assert first.record()["groups"] == ["test/0.txt", "test/1.txt", "test/2.txt"]


def record(*groups: str) -> dict[str, object]:
    return {"pieces": 64, "groups": list(groups), "near_duplicates_left_out": ["typer/again.py"]}


def test_texts_are_described_by_their_record_and_by_what_was_trained_on() -> None:
    """Of the two packages one is trained on: its unseen files are not another package's."""
    of_packages, end = texts(64), "documents left out because they repeat training text: 1."
    seen = [CorpusSpec("installed:typer", min_characters=1)]
    given = (of_packages, record("typer", "yaml"), "Python code")
    assert described_texts(*given) == (
        f"Texts: 64 pieces of Python code from 2 packages, none of them trained on; {end}"
    )
    assert described_texts(*given, seen) == (
        "Texts: 64 pieces of Python code from 2 packages, 1 of them trained on (unseen files of them); " + end
    )
    assert " from 1 package that was trained on (unseen files of them); " in described_texts(
        of_packages, record("typer"), "Python code", seen
    )
    books = texts(64, source="dir:books")
    assert " of books from 2 documents, none of them trained on; " in described_texts(
        books, record("a", "b"), "books", seen
    )
