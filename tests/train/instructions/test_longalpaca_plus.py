"""LongAlpaca-plus built from small files in the forms in which its sources are published."""

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from instruction_sources import (
    booksum_row,
    hub_question,
    longqa_row,
    redpajama_row,
    simplified_question,
    words,
    write_lines,
    write_parquet,
    write_sources,
)
from sinklora.records.files import file_hash
from sinklora.train.instructions import dataset_folder
from sinklora.train.instructions.dataset_folder import read_split
from sinklora.train.instructions.examples import MIX, Example, mixed_counts
from sinklora.train.instructions.longalpaca_plus import build_longalpaca_plus
from sinklora.train.instructions.sampling import Repetitions
from sinklora.train.instructions.source_rows import source_files

TOTAL = 50  # 22, 14, 9 and 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="module")
def sources(folder: Path) -> dict[str, str]:
    return write_sources(folder)


@pytest.fixture(scope="module")
def built(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    out = tmp_path_factory.mktemp("built") / "plus"
    return build_longalpaca_plus(sources, out=out, total=TOTAL, tokenizer=tokenizer, progress=False)


def build(sources: dict[str, str], out: Path, **options: Any) -> pd.DataFrame:
    options = {"total": TOTAL, "progress": False, **options}
    return read_split(build_longalpaca_plus(sources, out=out, **options))


def test_the_papers_counts() -> None:
    assert mixed_counts(28_000) == {"nq": 12_320, "redpajama": 7_560, "booksum": 5_040, "longqa": 3_080}
    for total in (10, 50, 97, 1001):
        counts = mixed_counts(total)
        assert sum(counts.values()) == total
        assert all(abs(counts[name] - total * MIX[name] / 1000) < 1 for name in MIX)
    with pytest.raises(ValueError, match="total=3: leaves none for longqa"):
        mixed_counts(3)


def test_counts_are_exact_and_every_example_says_where_it_is_from(
    built: Path, sources: dict[str, str]
) -> None:
    examples = read_split(built)
    assert Counter(examples.source) == mixed_counts(TOTAL)
    for name, group in examples.groupby("source"):
        assert set(group.file) == {Path(sources[str(name)]).name}
        assert set(group.file_sha256) == {file_hash(Path(sources[str(name)]))}
        assert group.id.is_unique and group.licence.nunique() == 1
    assert set(examples.kind) == {"question", "continuation", "summary", "long question"}
    assert set(examples[examples.source == "nq"].output) == {"Ada Lovelace"}


def test_parquet_and_jsonl_hold_the_same_and_lengths_are_counted(built: Path) -> None:
    examples = read_split(built)
    lines = (built / "train.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line) for line in lines] == examples.to_dict("records")
    tokenizer = AutoTokenizer.from_pretrained("data/base")
    for row in examples.head(3).itertuples():
        assert row.instruction_words == len(str(row.instruction).split())
        assert row.output_tokens == len(tokenizer(row.output, add_special_tokens=False)["input_ids"])


def test_the_card_and_the_record_tell_what_is_in_it(built: Path) -> None:
    card = (built / "README.md").read_text(encoding="utf-8")
    assert "CC-BY-SA-3.0" in card and "CC-BY-NC-4.0" in card and "path: train.parquet" in card
    assert "| all " in card and "44.0" in card
    record = json.loads((built / "record.json").read_text(encoding="utf-8"))
    assert record["sources"]["nq"]["rows"] == 30 and record["seed"] == 0
    assert str(built.parent) not in json.dumps(record)


def test_datasets_reads_the_folder(built: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    rows = load_dataset(str(built), split="train", cache_dir=str(tmp_path))
    assert rows.num_rows == TOTAL and rows[0]["instruction"]


def test_the_choice_follows_the_seed_and_not_the_order_of_rows(
    sources: dict[str, str], built: Path, tmp_path: Path
) -> None:
    rows = [simplified_question(n) for n in range(30)]
    random.Random(1).shuffle(rows)
    shuffled = {**sources, "nq": str(write_lines(tmp_path / "nq.jsonl", rows))}
    first, again = read_split(built), build(shuffled, tmp_path / "again")
    assert list(first.id) == list(again.id)
    other = build(sources, tmp_path / "other", seed=1)
    assert set(first.id) != set(other.id)


def test_the_hubs_form_in_a_local_folder_gives_the_same(
    sources: dict[str, str], built: Path, tmp_path: Path
) -> None:
    rows = [hub_question(simplified_question(n)) for n in range(30)]
    write_parquet(tmp_path / "nq" / "default" / "train-00000-of-00001.parquet", rows)
    first = read_split(built)
    read = build({**sources, "nq": str(tmp_path / "nq")}, tmp_path / "read")
    streamed = build({**sources, "nq": f"hub:{tmp_path / 'nq'}"}, tmp_path / "streamed")
    for again in (read, streamed):
        assert list(again.instruction) == list(first.instruction)
        assert list(again.output) == list(first.output)
    assert set(streamed[streamed.source == "nq"].file_sha256) == {""}


def test_near_duplicates_fall_out_and_are_counted(sources: dict[str, str], tmp_path: Path) -> None:
    """The same chapter with few words changed, and its summary; another summary of it is another example."""
    rows = [booksum_row(n) for n in range(12)]
    copies = [{**row, "chapter": row["chapter"] + " more words", "bid": "99"} for row in rows]
    other = {**rows[0], "summary_text": words(30, "another summary")}
    for name, given in (("copied", [*rows, *copies]), ("second", [*rows[:8], other])):
        write_lines(tmp_path / f"{name}.jsonl", list(given))
    out = tmp_path / "out"
    examples = build({**sources, "booksum": str(tmp_path / "copied.jsonl")}, out)
    chosen = examples[examples.source == "booksum"]
    assert len(chosen) == 9 and chosen.output.is_unique
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    assert record["sources"]["booksum"]["near_duplicates"] > 0
    second = build({**sources, "booksum": str(tmp_path / "second.jsonl")}, tmp_path / "second")
    assert sum(second.source == "booksum") == 9


def asked_of(page: str, question: str, answer: str) -> Example:
    """A question about a page, which is as long as that no run of words is the question's alone."""
    about = {"kind": "question", "source": "nq", "id": question, "document": page, "licence": "", "file": ""}
    return Example(f"{words(200, page)} Question: {question}", answer, **about)


def test_second_questions_about_pages_stay_whatever_other_pages_answer() -> None:
    seen = Repetitions()
    asked = [
        ("A", "is it", "Yes"), ("B", "when was it", "1945"), ("A", "when did it end", "1945"),
        ("A", "who was it", "Ada"), ("B", "is it so", "Yes"),
        ("A", "what", words(20, "what")), ("B", "what", words(20, "what it is")),
    ]  # fmt: skip
    assert all(seen.is_new(asked_of(*one)) for one in asked)
    assert not any(seen.is_new(asked_of(*one)) for one in asked)
    assert not seen.is_new(asked_of("A", "is it really", "yes"))
    assert seen.is_new(asked_of("C", "what", words(20, "what")))
    assert seen.is_new(asked_of("A", "what else", words(20, "something else")))


def test_more_rows_are_kept_where_many_are_near_duplicates(sources: dict[str, str], tmp_path: Path) -> None:
    rows = [{**booksum_row(n % 9), "bid": str(n), "summary_url": str(n)} for n in range(9)]
    copies = [
        {**row, "chapter": f"{row['chapter']} {words(2, (n, row['bid']))}"} for n in range(8) for row in rows
    ]
    path = write_lines(tmp_path / "many.jsonl", list(copies))
    examples = build({**sources, "booksum": str(path)}, tmp_path / "out")
    assert examples[examples.source == "booksum"].output.nunique() == 9


def test_a_source_that_is_short_is_named_with_what_is_missing(
    sources: dict[str, str], tmp_path: Path
) -> None:
    few = write_lines(tmp_path / "few.jsonl", [longqa_row(n) for n in range(3)] + [longqa_row(0)])
    said = r"source longqa \(LongQA\): 5 examples are wanted and 3 are there, 2 too few \(rows read 4, 1 near"
    with pytest.raises(ValueError, match=said):
        build({**sources, "longqa": str(few)}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"source nq .*19 too few"):
        build(sources, tmp_path / "out", most_rows=3)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_or_unknown_is_refused(sources: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no source is called 'c4'; there are nq, redpajama"):
        build({**sources, "c4": "x"}, tmp_path)
    with pytest.raises(ValueError, match=r"booksum \(BookSum\) not given"):
        build({name: place for name, place in sources.items() if name != "booksum"}, tmp_path)
    with pytest.raises(FileNotFoundError, match="source nq: 'nowhere' is not there"):
        build({**sources, "nq": "nowhere"}, tmp_path)
    (tmp_path / "text.txt").write_text("no")
    with pytest.raises(ValueError, match=r"source nq: .* holds none of \.jsonl"):
        build({**sources, "nq": str(tmp_path)}, tmp_path)
    with pytest.raises(ValueError, match="seed=-1"):
        build(sources, tmp_path, seed=-1)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "a", "meta": {}}\n{"text": \n', r"a\.jsonl, line 2: not a line of JSON"),
        ("a.json", '[{"text": "a"},\n {"text" 1}]', r"a\.json: not JSON .*line 2 column"),
        ("a.json", '{"text": "a"}', r"a\.json: a dict, not a list"),
        ("a.json", '[{"text": "a"}, 3]', r"a\.json, entry 2: a int, not an object"),
        ("a.csv", "text,meta\na,b\na,b,c\n", r"a\.csv: damaged \(.*#3: Expected 2 columns, got 3"),
        ("a.csv", "text,meta\na,b\na\n", r"a\.csv: damaged \(.*#3: Expected 2 columns, got 1"),
        ("a.csv", "", r"a\.csv: damaged \("),
        ("a.parquet", "PAR1 no", r"a\.parquet: damaged behind row 0"),
    ],
)
def test_damage_is_named_with_its_place(
    sources: dict[str, str], tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    [file] = source_files("redpajama", str(tmp_path / name)).files
    with pytest.raises(ValueError, match=words):
        list(file.rows())


def test_a_folder_is_read_whole_or_refused(tmp_path: Path) -> None:
    """RedPajama's CommonCrawl is packed in another way than the rest of it."""
    names = ("arxiv.jsonl", "common_crawl/en_head_0000.json.gz.dedup.classifier.jsonl.zst")
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        line = json.dumps(redpajama_row(number)).encode() + b"\n"
        (tmp_path / name).write_bytes(pa.compress(line, "zstd", asbytes=True) if number else line)
    read = source_files("redpajama", str(tmp_path)).files
    assert [file.name for file in read] == list(names)
    assert [row for file in read for _, row in file.rows()] == [redpajama_row(n) for n in range(2)]
    (tmp_path / "wikipedia.jsonl.xz").write_bytes(b"")
    for place in (tmp_path, tmp_path / "wikipedia.jsonl.xz"):
        with pytest.raises(
            ValueError, match=r"source redpajama: 'wikipedia.jsonl.xz' is packed; unpack it, or"
        ):
            source_files("redpajama", str(place))


def test_held_out_and_hidden_files_of_a_download_are_not_read(
    sources: dict[str, str], tmp_path: Path
) -> None:
    names = (
        "train/nq-train-00.jsonl",
        "dev/nq-dev-00.jsonl",
        ".cache/of_a_download.jsonl",
        "nq-train.jsonl~",
    )
    for name in names:
        (tmp_path / "nq" / name).parent.mkdir(parents=True, exist_ok=True)
        write_lines(tmp_path / "nq" / name, [simplified_question(n) for n in range(30)])
    (tmp_path / "nq" / "README.md").write_text("Natural Questions")
    build({**sources, "nq": str(tmp_path / "nq")}, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "record.json").read_text(encoding="utf-8"))["sources"]["nq"]
    assert list(record["files"]) == ["train/nq-train-00.jsonl"]
    assert record["passed_over"] == ["README.md", "dev/nq-dev-00.jsonl"]
    for place in ("dev", "dev/nq-dev-00.jsonl"):  # what is named alone is meant
        [file] = source_files("nq", str(tmp_path / "nq" / place)).files
        assert file.name == "nq-dev-00.jsonl"


def test_half_a_character_is_named_with_its_place(sources: dict[str, str], tmp_path: Path) -> None:
    """In the text of an example and in the name of its document alike, before anything is written."""
    for name, change in (
        ("text", {"text": words(450, 1) + " \ud83d"}),
        ("document", {"red_pajama_subset": "\ud83d"}),
    ):
        rows = [redpajama_row(n) | (change if n == 3 else {}) for n in range(20)]
        path = write_lines(tmp_path / "rows.jsonl", rows)
        with pytest.raises(ValueError, match=rf"rows\.jsonl, line 4: '{name}' holds '\\ud83d', half"):
            build({**sources, "redpajama": str(path)}, tmp_path / "out")


def test_a_file_may_have_a_name_that_is_no_utf8(sources: dict[str, str], tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl"))
    write_lines(path, [redpajama_row(n) for n in range(20)])
    examples = build({**sources, "redpajama": str(path)}, tmp_path / "out")
    assert set(examples[examples.source == "redpajama"].file) == {"caf\\xe9.jsonl"}


def test_a_chapter_may_be_longer_than_a_csv_field_is_by_default(tmp_path: Path) -> None:
    from instruction_sources import write_csv

    row = {**booksum_row(1), "chapter": "word\n" * 60_000}
    [file] = source_files("booksum", str(write_csv(tmp_path / "a.csv", [row]))).files
    [(_, read)] = file.rows()
    assert read == row


def test_a_build_that_is_killed_leaves_what_was_there(
    sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(sources, tmp_path / "out")
    files = {path.name: file_hash(path) for path in (tmp_path / "out").iterdir()}
    child = os.fork()
    if not child:  # dies while it writes its card, behind the examples
        monkeypatch.setattr(dataset_folder, "write_json", lambda *_: os._exit(9))
        build(sources, tmp_path / "out", seed=1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    there = {path.name: file_hash(path) for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert there == files
    assert list(build(sources, tmp_path / "out").id) == list(before.id)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(files)


def test_redpajama_rows_are_no_examples_twice(sources: dict[str, str], tmp_path: Path) -> None:
    rows = [redpajama_row(n) for n in range(14)]
    path = write_lines(tmp_path / "twice.jsonl", rows + rows)
    examples = build({**sources, "redpajama": str(path)}, tmp_path / "out")
    assert examples[examples.source == "redpajama"].id.nunique() == 14
