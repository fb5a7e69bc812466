"""Corpora, splits, the token cache and packed rows, on small local files in the real formats."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from sinklora.reproduction.base_model.study import train_tokenizer
from sinklora.train.rows import PackedRows
from sinklora.train.sources import SPLITS, CorpusSpec, content_hash, read_documents, split_of
from sinklora.train.tokens import TokenizedCorpus, corpus_record, tokenize_corpus

TEXTS = [f"def function_{i}(x):\n    return x + {i}\n" * 8 for i in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 300)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def names(spec: CorpusSpec) -> set[str]:
    return {document.name for document in read_documents(spec)[0]}


def test_splits_are_disjoint_and_cover_everything(folder: Path) -> None:
    for number in range(400):
        (folder / f"more{number}.txt").write_text("x = 1\n" * 50)
    parts = [names(CorpusSpec(f"dir:{folder}", split)) for split in SPLITS]
    assert set.union(*parts) == {path.name for path in folder.iterdir()}
    assert sum(map(len, parts)) == 440
    assert 0.92 < len(parts[0]) / 440 < 0.99


def test_named_split_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    for split in SPLITS:
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.txt").write_text(f"{split} " * 100)
    for split in SPLITS:
        [document] = read_documents(CorpusSpec(f"dir:{tmp_path}", split))[0]
        assert document.text.startswith(split)


def test_files_beside_the_splits_of_a_folder_are_counted(tmp_path: Path) -> None:
    """A folder of texts of which one subfolder happens to be called "test" loses none in silence."""
    for name in ("test/a.txt", "test/deep/b.txt", "c.txt", "chapters/test/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("words " * 100)
    documents, skipped = read_documents(CorpusSpec(f"dir:{tmp_path}", "test"))
    assert {document.name for document in documents} == {"test/a.txt", "test/deep/b.txt"}
    assert skipped["outside of train, validation and test"] == 2
    with pytest.raises(ValueError, match=r"no document left .*outside of train, validation and test': 2"):
        read_documents(CorpusSpec(f"dir:{tmp_path}", "train"))
    assert len(read_documents(CorpusSpec(f"dir:{tmp_path / 'chapters' / 'test'}", "all"))[1]) == 3


def test_installed_packages_never_share_files_between_splits() -> None:
    limits = {"total_characters": 200_000}
    train = names(CorpusSpec("installed:", "train", **limits))
    held_out = names(CorpusSpec("installed:", "validation", **limits))
    unseen = names(CorpusSpec("installed:", "test", **limits))
    assert train and held_out and unseen
    assert not train & held_out
    assert {name.partition("/")[0] for name in unseen} <= {"pandas", "matplotlib"}
    assert not {name.partition("/")[0] for name in train | held_out} & {"pandas", "matplotlib"}


def test_hidden_files_and_older_copies_are_no_documents(tmp_path: Path) -> None:
    hidden = (
        ".git/hooks/pre-commit.sample",
        ".ipynb_checkpoints/book-checkpoint.txt",
        ".draft.txt",
        "book.txt~",
    )
    for name in ("book.txt", "part/chapter.txt", *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("book " * 100)
    assert names(CorpusSpec(f"dir:{tmp_path}", "all")) == {"book.txt", "part/chapter.txt"}
    inside_hidden = tmp_path / ".ipynb_checkpoints"  # a folder that is named counts as it is
    assert names(CorpusSpec(f"dir:{inside_hidden}", "all")) == {"book-checkpoint.txt"}


@pytest.mark.skipif(sys.platform == "darwin", reason="its file names are UTF-8")
def test_a_file_name_that_is_no_utf8_is_a_name_like_others(tmp_path: Path) -> None:
    for name in (b"caf\xe9.txt", "café.txt".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("book " * 100)
    documents, _ = read_documents(CorpusSpec(f"dir:{tmp_path}", "all"))
    assert {document.name for document in documents} == {"caf\\xe9.txt", "café.txt"}
    assert len(content_hash(documents)) == 64


def test_a_smaller_limit_selects_a_prefix(folder: Path) -> None:
    few, _ = read_documents(CorpusSpec(f"dir:{folder}", total_characters=2000))
    many, _ = read_documents(CorpusSpec(f"dir:{folder}"))
    assert 0 < len(few) < len(many)
    assert few == many[: len(few)]


def test_jsonl_and_hub_hold_the_same_texts(tmp_path: Path) -> None:
    lines = tmp_path / "corpus.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "hub").mkdir()
    Dataset.from_dict({"text": TEXTS}).to_parquet(tmp_path / "hub" / "train-00000.parquet")
    from_hub, _ = read_documents(CorpusSpec(f"hub:{tmp_path / 'hub'}"))
    assert {d.text for d in from_hub} == set(TEXTS)
    from_lines, _ = read_documents(CorpusSpec(f"jsonl:{lines}"))
    expected = {text for number, text in enumerate(TEXTS, 1) if split_of(f"line {number}") == "train"}
    assert {d.text for d in from_lines} == expected


def test_unreadable_documents_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "fine.txt").write_text("fine " * 100)
    (folder / "latin.txt").write_bytes("é".encode("latin-1") * 500)
    (folder / "binary.txt").write_bytes(b"\0" * 500)
    (folder / "tiny.txt").write_text("x")
    documents, skipped = read_documents(CorpusSpec(f"dir:{tmp_path}"))
    assert [document.name for document in documents] == ["train/fine.txt"]
    assert skipped == {"wrong encoding or binary": 2, "too short": 1, "too long": 0}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda _: CorpusSpec("wikipedia"), ValueError, "source='wikipedia'"),
        (lambda _: CorpusSpec(split="dev"), ValueError, "split='dev'"),
        (lambda _: CorpusSpec(min_characters=9, max_characters=3), ValueError, "min_characters=9"),
        (lambda _: CorpusSpec(total_characters=0), ValueError, "total_characters=0"),
        (lambda p: read_documents(CorpusSpec(f"dir:{p}/none")), FileNotFoundError, "not a folder"),
        (lambda p: read_documents(CorpusSpec(f"dir:{p}")), ValueError, "no document left"),
        (lambda p: read_documents(CorpusSpec(f"jsonl:{p}/none")), FileNotFoundError, "not a file"),
        (lambda _: read_documents(CorpusSpec("installed:not_a_package")), ValueError, "not_a_package"),
    ],
)
def test_bad_input_is_named(make, error, words, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=words):
        make(tmp_path)


def test_a_malformed_line_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "fine"}\n{"title": "no text"}\n')
    with pytest.raises(ValueError, match=r"bad.jsonl, line 2: .*'text'"):
        read_documents(CorpusSpec(f"jsonl:{path}", min_characters=0))


def test_half_a_character_is_named_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("fine", "half \ud83d")))
    with pytest.raises(
        ValueError, match=r"corpus\.jsonl, line 2: 'text' holds '\\ud83d', half .*text_column"
    ):
        read_documents(CorpusSpec(f"jsonl:{path}", min_characters=0))


@pytest.mark.parametrize("wrong", [None, ["a", "b"], 7], ids=repr)
def test_a_line_whose_column_holds_no_text_is_named(wrong: object, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"body": body}) + "\n" for body in ("fine", wrong)))
    said = rf"corpus\.jsonl, line 2: 'body' is {re.escape(repr(wrong))}, expected str \(text_column='body'\)"
    with pytest.raises(ValueError, match=said):
        read_documents(CorpusSpec(f"jsonl:{path}", text_column="body", min_characters=0))


@pytest.mark.parametrize("bodies", [["fine", None], [["a"], ["b", "c"]]], ids=["null", "list"])
def test_a_row_of_a_data_set_whose_column_holds_no_text_is_named(
    bodies: list[object], tmp_path: Path
) -> None:
    Dataset.from_dict({"body": bodies}).to_parquet(tmp_path / "train-00000.parquet")
    said = r", row 2: 'body' is None" if bodies[-1] is None else r", row 1: 'body' is \['a'\]"
    with pytest.raises(ValueError, match=said + r", expected str \(text_column='body'\)"):
        read_documents(CorpusSpec(f"hub:{tmp_path}", text_column="body", min_characters=0))


def test_every_document_begins_with_bos_and_decodes_to_its_text(
    folder: Path, tokenizer, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    spec = CorpusSpec(f"dir:{folder}")
    corpus = tokenize_corpus(spec, tokenizer, cache=tmp_path / "cache", progress=False)
    documents, _ = read_documents(spec)
    assert corpus.names == tuple(d.name for d in documents)
    for ids, document in zip(corpus.documents(), documents, strict=True):
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == document.text
    assert corpus.sha256 == content_hash(documents)
    assert corpus_record(spec, corpus)["tokens"] == len(corpus.tokens)


def test_the_cache_is_read_back_and_a_damaged_one_is_made_anew(
    folder: Path, tokenizer, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    spec, cache = CorpusSpec(f"dir:{folder}"), tmp_path / "cache"
    first = np.array(tokenize_corpus(spec, tokenizer, cache=cache, progress=False).tokens)
    [path] = cache.glob("*/tokens.npy")
    written = path.stat().st_mtime_ns
    tokenize_corpus(spec, tokenizer, cache=cache, progress=False)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-2] + b"\1\2")
    again = tokenize_corpus(spec, tokenizer, cache=cache, progress=False)
    assert np.array_equal(again.tokens, first)
    assert path.stat().st_mtime_ns != written


def test_changed_text_gets_another_cache(folder: Path, tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    spec, cache = CorpusSpec(f"dir:{folder}"), tmp_path / "cache"
    before = tokenize_corpus(spec, tokenizer, cache=cache, progress=False)
    for path in folder.glob("*.txt"):
        path.write_text(path.read_text() + "# changed\n")
    after = tokenize_corpus(spec, tokenizer, cache=cache, progress=False)
    assert before.sha256 != after.sha256
    assert len(after.tokens) > len(before.tokens)


def small_corpus() -> TokenizedCorpus:
    tokens = np.arange(1, 24, dtype=np.uint16)
    return TokenizedCorpus(tokens, np.array([0, 5, 6, 17]), ("a", "b", "c", "d"), "", {})


def test_packed_rows_by_hand() -> None:
    rows = PackedRows(small_corpus(), 8, separate_documents=True)
    assert len(rows) == 2
    assert rows[0]["input_ids"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rows[0]["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 0, 1]
    assert rows[0]["labels"].tolist() == [-100, 2, 3, 4, 5, -100, -100, 8]
    # The second row begins inside the third document and counts from its own start.
    assert rows[1]["position_ids"].tolist() == list(range(8))


def test_rows_without_documents_predict_every_token() -> None:
    row = PackedRows(small_corpus(), 8)[1]
    assert set(row) == {"input_ids", "labels"}
    assert torch.equal(row["labels"], row["input_ids"])


@pytest.mark.parametrize("context", [1, 24])
def test_a_context_that_does_not_fit_is_named(context: int) -> None:
    with pytest.raises(ValueError, match=f"context={context}"):
        PackedRows(small_corpus(), context)
