"""The small set: kinds and counts of the mix, answers that stand in the text, halves with no common text."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from documented_package import write_package
from instruction_sources import words
from sinklora.cli import application
from sinklora.train.instructions.dataset_folder import read_split
from sinklora.train.instructions.mini import MiniSet, MiniSpec, is_held_out, make_mini, read_books
from sinklora.train.instructions.mini_kinds import MOST_CHARACTERS, PER_ANSWER, PER_DOCUMENT

NAME = "documented_by_chance"


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("site")
    write_package(folder, NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("books")
    for number in range(8):
        paragraphs = [words(70, f"book {number}/{n}") for n in range(120)]
        (folder / f"book{number}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def mini(package: Path, books: Path) -> MiniSet:
    return make_mini(MiniSpec(30, 12, (NAME,), str(books), books_licence="CC0"))


def test_kinds_come_in_the_papers_mix(mini: MiniSet) -> None:
    assert Counter(example.kind for example in mini.train) == {
        "question": 13, "continuation": 8, "summary": 6, "long question": 3,
    }  # fmt: skip
    assert len(mini.test) == 12 and mini.repeated == 0
    books = [example for example in mini.train if example.licence == "CC0"]
    assert len(books) == 4 and {example.kind for example in books} == {"continuation"}


def test_no_document_is_in_both_halves(mini: MiniSet) -> None:
    train, test = (
        {document for example in half for document in example.document.split(", ")}
        for half in (mini.train, mini.test)
    )
    assert train and test and not train & test
    assert all(is_held_out(document) for document in test)
    assert not any(is_held_out(document) for document in train)


def test_answers_stand_in_the_text_but_summaries_do_not(mini: MiniSet) -> None:
    for example in (*mini.train, *mini.test):
        if example.kind == "question":
            assert example.output in example.instruction
        elif example.kind == "summary":
            assert example.output not in example.instruction
        elif example.kind == "long question" and ".py" in example.output:
            assert f"File: {example.output}\n" in example.instruction
            assert f"## {example.id.split('#')[1].removesuffix('.file')}\n" in example.instruction


def test_a_continuation_comes_next_in_its_text(mini: MiniSet, books: Path) -> None:
    found = [example for example in mini.train if example.licence == "CC0"]
    assert found
    for example in found:
        text = (books / example.document).read_text(encoding="utf-8")
        given = example.instruction.partition("\n\n")[2]
        assert f"{given}\n\n{example.output}" in text


def test_no_document_and_no_answer_outweighs_the_others(mini: MiniSet) -> None:
    for half in (mini.train, mini.test):
        for kind in ("question", "summary", "long question"):
            of_kind = [example for example in half if example.kind == kind]
            assert max(Counter(example.document for example in of_kind).values()) <= PER_DOCUMENT
            assert all(len(example.instruction) < MOST_CHARACTERS + 400 for example in of_kind)
            assert max(Counter(example.output for example in of_kind).values()) <= PER_ANSWER
    assert len({example.id for example in mini.train}) == len(mini.train)


def test_the_questions_of_the_test_half_are_its_examples(mini: MiniSet) -> None:
    asked = [example for example in mini.test if "question" in example.kind]
    assert [question.answer for question in mini.questions] == [example.output for example in asked]
    for question, example in zip(mini.questions, asked, strict=True):
        assert question.context in example.instruction and question.question in example.instruction


def test_the_same_spec_gives_the_same_set(mini: MiniSet, books: Path) -> None:
    assert make_mini(MiniSpec(30, 12, (NAME,), str(books), books_licence="CC0")) == mini
    other = make_mini(MiniSpec(30, 12, (NAME,), str(books), seed=1))
    assert {example.id for example in other.train} != {example.id for example in mini.train}
    licences = {example.licence for example in other.train if example.document.endswith(".txt")}
    assert licences == {"not stated"}, "of books that come without one"


def test_what_is_said_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write_package(tmp_path, "said_twice")
    (package / "again.py").write_text((package / "part_3.py").read_text())
    monkeypatch.syspath_prepend(str(tmp_path))
    found = make_mini(MiniSpec(20, 10, ("said_twice",)))
    assert found.repeated == 14
    held = {d for e in (*found.train, *found.test) for d in e.document.split(", ")}
    assert not {"said_twice/again.py", "said_twice/part_3.py"} <= held


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train=\d+ examples of the kind 'question' are wanted and \d+"):
        make_mini(MiniSpec(2000, 12, (NAME,)))
    with pytest.raises(ValueError, match="package 'no_such_thing' is not installed"):
        make_mini(MiniSpec(30, 12, ("no_such_thing",)))
    with pytest.raises(FileNotFoundError, match="books='nowhere'"):
        MiniSpec(books="nowhere")
    with pytest.raises(ValueError, match="total=4"):
        MiniSpec(test=4)
    with pytest.raises(ValueError, match="holds no text"):
        read_books(str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8"):
        read_books(str(tmp_path))


def test_hidden_copies_are_no_books_and_every_name_is_text(tmp_path: Path) -> None:
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name in (b"caf\xe9.txt", b".ipynb_checkpoints/book-checkpoint.txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("book")
    assert [book.name for book in read_books(str(tmp_path))] == ["caf\\xe9.txt"]


def invoked(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(application, ["data", *map(str, arguments)])
    return found.exit_code, " ".join(found.output.split())


def test_the_command_makes_the_folder(mini: MiniSet, books: Path, tmp_path: Path) -> None:
    options = ["--train", 30, "--test", 12, "--package", NAME, "--books", books, "--out", tmp_path / "mini"]
    code, said = invoked("mini", *options, "--tokenizer", "data/base")
    assert code == 0 and said.endswith("mini")
    train, test = (read_split(tmp_path / "mini", split) for split in ("train", "test"))
    assert list(train.instruction) == [example.instruction for example in mini.train]
    assert list(test.output) == [example.output for example in mini.test]
    assert (train.instruction_tokens > 0).all()
    lines = (tmp_path / "mini" / "test_questions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    first = json.loads(lines[0])
    assert len(lines) == len(mini.questions) and first["answers"] == [mini.questions[0].answer]
    assert set(first) == {"id", "context", "question", "answers", "document"}
    record = (tmp_path / "mini" / "record.json").read_text(encoding="utf-8")
    assert str(books.parent) not in record
    with pytest.raises(FileNotFoundError, match="validation"):
        read_split(tmp_path / "mini", "validation")
    damaged = tmp_path / "mini" / "test.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 + 1 :])
    with pytest.raises(ValueError, match=r"test\.parquet: damaged \("):
        read_split(tmp_path / "mini", "test")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mini", "--train", 3, "--out", "x"], "total=3"),
        (["mini", "--books", "nowhere", "--out", "x"], "books='nowhere'"),
        (["mini", "--tokenizer", "nowhere/at/all", "--out", "x"], "tokenizer='nowhere/at/all'"),
        (["longalpaca-plus", "--source", "nq", "--out", "x"], "source='nq': expected NAME=PATH"),
        (["longalpaca-plus", "--source", "nq=a", "--source", "nq=b", "--out", "x"], "nq is given twice"),
        (["longalpaca-plus", "--source", "nq=a", "--out", "x"], "not given"),
    ],
)
def test_the_commands_refuse_in_a_sentence(
    arguments: list[object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments = [tmp_path / "x" if argument == "x" else argument for argument in arguments]
    code, said = invoked(*arguments)
    assert code == 2 and said.startswith("Error: ") and words in said
    assert not (tmp_path / "x").exists()
