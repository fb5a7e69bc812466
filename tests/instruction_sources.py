"""Small files in exactly the forms in which the sources of LongAlpaca-plus are published."""

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

LETTERS = "abcdefghijklmnopqrstuvwxyz"

# The columns of BookSum's files on the hub.
BOOKSUM_COLUMNS = (
    "bid", "is_aggregate", "source", "chapter_path", "summary_path", "book_id", "summary_id", "content",
    "summary", "chapter", "chapter_length", "summary_name", "summary_url", "summary_text",
    "summary_analysis", "summary_length", "analysis_length",
)  # fmt: skip


def words(count: int, seed: object) -> str:
    """Words of chance, so that no two texts share a run of them."""
    rng = random.Random(str(seed))
    return " ".join("".join(rng.choices(LETTERS, k=6)) for _ in range(count))


def simplified_question(number: int) -> dict[str, Any]:
    """A row of Natural Questions' simplified training file; its answer is "Ada Lovelace"."""
    filler = words(40, f"page {number}")
    text = f"<H1> Page {number} </H1> <P> It was Ada Lovelace ( then young ) . </P> <P> {filler} </P>"
    begin = text.split(" ").index("Ada")
    return {
        "document_text": text,
        "long_answer_candidates": [{"start_token": 5, "top_level": True, "end_token": 16}],
        "question_text": f"who was it on page {number}",
        "annotations": [
            {
                "yes_no_answer": "NONE",
                "long_answer": {"start_token": 5, "candidate_index": 0, "end_token": 16},
                "short_answers": [{"start_token": begin, "end_token": begin + 2}],
                "annotation_id": 10**18 + number,
            }
        ],
        "document_url": f"https://en.wikipedia.org/w/index.php?title=Page_{number}&amp;oldid={number}",
        "example_id": -(10**17) - number,
    }


def original_question(row: dict[str, Any]) -> dict[str, Any]:
    """The same in the original form, with byte offsets beside the tokens."""
    place, tokens = 0, []
    for token in row["document_text"].split(" "):
        is_tag = token.startswith("<")
        end = place + len(token.encode())
        tokens.append({"token": token, "start_byte": place, "end_byte": end, "html_token": is_tag})
        place = end + 1

    def with_bytes(span: dict[str, Any]) -> dict[str, Any]:
        first, last = span["start_token"], span["end_token"]
        if first < 0:
            return {**span, "start_byte": -1, "end_byte": -1}
        return {**span, "start_byte": tokens[first]["start_byte"], "end_byte": tokens[last - 1]["end_byte"]}

    annotations = [
        {
            **one,
            "long_answer": with_bytes(one["long_answer"]),
            "short_answers": [with_bytes(span) for span in one["short_answers"]],
        }
        for one in row["annotations"]
    ]
    kept = {key: value for key, value in row.items() if key != "document_text"}
    return {
        **kept,
        "document_html": row["document_text"],
        "document_title": "Page",
        "question_tokens": row["question_text"].split(" "),
        "document_tokens": tokens,
        "annotations": annotations,
    }


def hub_question(row: dict[str, Any]) -> dict[str, Any]:
    """The same as the hub stores it: sequences of objects are objects of lists."""
    original = original_question(row)
    tokens, spans = original["document_tokens"], ("start_token", "end_token", "start_byte", "end_byte")
    answers = {"NONE": -1, "NO": 0, "YES": 1}
    return {
        "id": str(row["example_id"]),
        "document": {
            "title": original["document_title"],
            "url": row["document_url"],
            "html": original["document_html"],
            "tokens": {
                "token": [token["token"] for token in tokens],
                "is_html": [token["html_token"] for token in tokens],
                "start_byte": [token["start_byte"] for token in tokens],
                "end_byte": [token["end_byte"] for token in tokens],
            },
        },
        "question": {"text": row["question_text"], "tokens": original["question_tokens"]},
        "long_answer_candidates": {
            **{name: [0] for name in spans},
            "top_level": [True],
        },
        "annotations": {
            "id": [str(one["annotation_id"]) for one in row["annotations"]],
            "long_answer": [one["long_answer"] for one in original["annotations"]],
            "short_answers": [
                {
                    **{name: [short[name] for short in one["short_answers"]] for name in spans},
                    "text": ["" for _ in one["short_answers"]],
                }
                for one in original["annotations"]
            ],
            "yes_no_answer": [answers[one["yes_no_answer"]] for one in row["annotations"]],
        },
    }


def redpajama_row(number: int) -> dict[str, Any]:
    return {
        "text": words(500, f"text {number}"),
        "meta": {"url": f"https://example.org/{number}", "timestamp": "2019-04-25", "source": "c4"},
    }


def booksum_row(number: int) -> dict[str, str]:
    given = {
        "bid": str(number),
        "is_aggregate": "False",
        "book_id": f"A Book.chapter {number}",
        "source": "somewhere",
        "summary": json.dumps({"name": "Chapter", "summary": "not this one"}),
        "chapter": f'\n "Quoted", it began.\n\n{words(60, f"chapter {number}")}\n',
        "summary_text": words(30, f"summary {number}"),
    }
    return {name: given.get(name, "") for name in BOOKSUM_COLUMNS}


def longqa_row(number: int) -> dict[str, str]:
    paper = words(1200, f"paper {number}")
    question = f"Below is a paper. {paper}\n Now the material ends. What is new in it?"
    return {"instruction": question, "output": words(20, f"answer {number}"), "input": "", "file": ""}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_sources(folder: Path, rows: int = 30) -> dict[str, str]:
    """All four sources, as many rows of each."""
    numbers = range(rows)
    (folder / "longqa.json").write_text(json.dumps([longqa_row(n) for n in numbers]), encoding="utf-8")
    paths = {
        "nq": write_lines(folder / "nq.jsonl.gz", [simplified_question(n) for n in numbers]),
        "redpajama": write_lines(folder / "redpajama.jsonl", [redpajama_row(n) for n in numbers]),
        "booksum": write_csv(folder / "booksum.csv", [booksum_row(n) for n in numbers]),
        "longqa": folder / "longqa.json",
    }
    return {name: str(path) for name, path in paths.items()}
