"""LongBench's files: records (questions) and predictions, one JSON object a line, read with a place for
every fault.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinklora.records.files import atomic_write
from sinklora.records.jsonl import json_lines
from sinklora.records.placed_fields import check_characters, field_of


@dataclass(frozen=True)
class Record:
    """One question: `input` about `context`; any of `answers` is right. `length` is LongBench's own count
    (words, or characters of Chinese), `all_classes` the labels of a classification, `id` is `_id`.
    """

    input: str
    context: str
    answers: tuple[str, ...]
    length: int
    dataset: str
    language: str
    all_classes: tuple[str, ...] | None
    id: str


@dataclass(frozen=True)
class Prediction:
    """What a model wrote for one record, with what scoring needs. `id` is None in files made elsewhere."""

    pred: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...] | None
    length: int | None
    id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as LongBench's prediction files name them, and `_id` where there is one."""
        fields = {
            "pred": self.pred,
            "answers": list(self.answers),
            "all_classes": None if self.all_classes is None else list(self.all_classes),
            "length": self.length,
        }
        return fields if self.id is None else {**fields, "_id": self.id}


def read_records(path: str | Path) -> list[Record]:
    """The records of one jsonl file in LongBench's format.

    Raises FileNotFoundError, or ValueError with file and line for a malformed record.
    """
    return [_record(fields, place) for place, fields in json_lines(Path(path))]


def load_records(source: str | Path, dataset: str) -> list[Record]:
    """The records of `dataset`: from `<source>/<dataset>.jsonl` of a local folder, otherwise the test split
    of the hub's data set `source` (one of plain files: code from the hub is never run).

    Raises FileNotFoundError for a folder without that file and for a source that is neither, ValueError for a
    malformed record.
    """
    if Path(source).is_dir():
        file = Path(source) / f"{dataset}.jsonl"
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; the folder has no data set of that name")
        return read_records(file)
    if not str(source) or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise FileNotFoundError(f"source={str(source)!r} is not a folder; give one with {dataset}.jsonl")
    from datasets import load_dataset

    try:
        rows = load_dataset(str(source), dataset, split="test")
    except (ConnectionError, FileNotFoundError, ValueError) as error:
        raise FileNotFoundError(
            f"source={str(source)!r} is neither a folder with {dataset}.jsonl nor a data set that the hub "
            f"gave: {error}"
        ) from error
    return [_record(dict(row), f"{source}, {dataset}, row {i}") for i, row in enumerate(rows, 1)]


def read_predictions(path: str | Path) -> list[Prediction]:
    """The predictions of one file in LongBench's format; the file is not changed.

    Raises FileNotFoundError, or ValueError with file and line for a damaged line.
    """
    return [_prediction(fields, place) for place, fields in json_lines(Path(path))]


def resume_predictions(path: Path, records: Sequence[Record]) -> list[Prediction]:
    """The predictions for the first of `records` that `path` has already, after repairing its end.

    A last line that a kill cut short is removed. Raises ValueError with file and line for any other damage
    and for predictions of other records; such a file is left as it is.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = _without_torn_end(content)
    done = [_prediction(fields, place) for place, fields in json_lines(path, whole)]
    advice = "give each model, setting and data set a file of its own, or delete this one"
    if len(done) > len(records):
        raise ValueError(f"{path} has {len(done)} predictions for {len(records)} records; {advice}")
    for line, (prediction, record) in enumerate(zip(done, records, strict=False), 1):
        if (prediction.id, prediction.answers) != (record.id, record.answers):
            raise ValueError(
                f"{path}, line {line}: the prediction is for _id {prediction.id!r}, "
                f"the record there is {record.id!r}; {advice}"
            )
    if whole != content:
        atomic_write(path, whole)
    return done


def _without_torn_end(content: bytes) -> bytes:
    """Whole lines: with the newline that a kill left out, without a prediction that it left unfinished.

    What does not begin like a prediction was not torn by a kill and stays, to be refused.
    """
    start = content.rfind(b"\n") + 1
    tail, opening = content[start:], b'{"pred": "'
    if not tail:
        return content
    try:
        json.loads(tail)
    except ValueError:
        torn = tail.startswith(opening) or opening.startswith(tail)
        return content[:start] if torn else content
    return content + b"\n"


def _record(fields: dict[str, Any], place: str) -> Record:
    if "input" not in fields and "question" in fields:  # so named in a copy on the hub
        fields = {**fields, "input": fields["question"]}
    return Record(
        input=field_of(fields, "input", str, place),
        context=field_of(fields, "context", str, place),
        answers=_strings(fields, "answers", place),
        length=field_of(fields, "length", int, place),
        dataset=field_of(fields, "dataset", str, place),
        language=field_of(fields, "language", str, place),
        all_classes=_classes(fields, place),
        id=field_of(fields, "_id", str, place),
    )


def _prediction(fields: dict[str, Any], place: str) -> Prediction:
    return Prediction(
        pred=field_of(fields, "pred", str, place),
        answers=_strings(fields, "answers", place),
        all_classes=_classes(fields, place),
        # Early releases wrote no length, and none wrote _id.
        length=field_of(fields, "length", int, place) if fields.get("length") is not None else None,
        id=field_of(fields, "_id", str, place) if fields.get("_id") is not None else None,
    )


def _strings(fields: dict[str, Any], name: str, place: str) -> tuple[str, ...]:
    values = field_of(fields, name, list, place)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{place}: {name!r} is {values!r:.80}, expected a list of at least one string")
    for value in values:
        check_characters(value, name, place)
    return tuple(values)


def _classes(fields: dict[str, Any], place: str) -> tuple[str, ...] | None:
    return None if fields.get("all_classes") is None else _strings(fields, "all_classes", place)
