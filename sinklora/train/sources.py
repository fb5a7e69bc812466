"""Corpora: from a name to documents.

A corpus is named by a string: `installed:torch,sympy` (Python sources of installed packages),
`prose:torch,sympy` (English prose of their docstrings and documentation), `dir:PATH` (a folder of text files,
without hidden ones) and `jsonl:PATH` (local text), `hub:NAME` (a data set of the Hugging Face hub, or a local
folder in its format).
"""

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sinklora.records.checks import Count, NotNegative, check_fields, one_of
from sinklora.records.files import name_in, visible_files
from sinklora.records.jsonl import json_lines
from sinklora.records.placed_fields import field_of
from sinklora.records.row_files import hub_rows
from sinklora.train.prose import package_prose

SPLITS = ("train", "validation", "test")

HELD_OUT, ALL = "held-out", "all"  # validation and test together; everything

TRAIN_PACKAGES = ("torch", "transformers", "sympy", "networkx", "numpy")

TEST_PACKAGES = ("pandas", "matplotlib")

PROSE_TEST_PACKAGES = (*TEST_PACKAGES, "scipy")  # prose is rarer than code

HELD_OUT_PERCENT = 4  # of the documents: half for validation, half (where no test split is named) for test


@dataclass(frozen=True)
class CorpusSpec:
    """Which documents: a source by name, a split, and limits on their length (characters).

    `total_characters` stops after that much text; documents come in the order of the hash of their names, so
    a smaller limit selects a prefix of a larger one. Raises TypeError or ValueError naming the field.
    """

    source: str = "installed:"
    split: Annotated[str, one_of((*SPLITS, HELD_OUT, ALL))] = "train"
    min_characters: NotNegative = 200
    max_characters: NotNegative = 400_000
    total_characters: Count | None = None
    text_column: str = "text"

    def __post_init__(self) -> None:
        check_fields(self)
        kind = self.source.partition(":")[0]
        if kind not in READERS or ":" not in self.source:
            raise ValueError(
                f"source={self.source!r}: expected one of {', '.join(k + ':…' for k in READERS)}"
            )
        if self.min_characters > self.max_characters:
            raise ValueError(
                f"min_characters={self.min_characters}: expected at most max_characters={self.max_characters}"
            )


@dataclass(frozen=True)
class Document:
    """A text of a source, and what it is called there."""

    name: str
    text: str


def _bucket(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def split_of(name: str) -> str:
    """The split of a document's name where its source has no splits of its own (96, 2 and 2 per cent)."""
    percent = _bucket(name) % 100
    if percent >= HELD_OUT_PERCENT:
        return "train"
    return "validation" if percent < HELD_OUT_PERCENT // 2 else "test"


def _is_in(name: str, split: str) -> bool:
    """Whether a document of this name is in a split, of a source that has none of its own."""
    return split == ALL or split_of(name) == split or (split == HELD_OUT and split_of(name) != "train")


def package_root(package: str) -> Path:
    """The folder of an installed package. Raises ValueError where it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"source: package {package!r} is not installed; install it or name other packages")
    return Path(next(iter(found.submodule_search_locations)))


def _read_text(path: Path) -> str:
    """Text of a UTF-8 file; UnicodeDecodeError for other encodings, ValueError for binary content."""
    text = path.read_bytes().decode("utf-8")
    if "\0" in text:
        raise ValueError("binary content")
    return text


def _files(root: Path, pattern: str, split: str, prefix: str) -> Iterator[tuple[str, Path | str]]:
    """Names and paths of the files of a folder that are in a split, without those that `visible_files` leaves
    out: a hidden copy of a held-out file would be trained on.
    """
    for path in visible_files(root, pattern):
        name = f"{prefix}{name_in(root, path)}"
        if _is_in(name, split):
            yield name, path


def _packages(argument: str, split: str, for_test: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Which packages are read, and the split of their files that is taken.

    Without names: TRAIN_PACKAGES for train and validation, `for_test` (never trained on) for test.
    Held-out files of the training packages are never trained on, whichever of the two held-out halves.
    """
    if argument:
        return tuple(argument.split(",")), split
    return (for_test, ALL) if split == "test" else (TRAIN_PACKAGES, split)


def _installed(argument: str, spec: CorpusSpec) -> Iterator[tuple[str, Path | str]]:
    packages, split = _packages(argument, spec.split, TEST_PACKAGES)
    for package in packages:
        yield from _files(package_root(package), "*.py", split, f"{package}/")


def _prose(argument: str, spec: CorpusSpec) -> Iterator[tuple[str, Path | str]]:
    packages, split = _packages(argument, spec.split, PROSE_TEST_PACKAGES)
    for package in packages:
        for name, text in package_prose(package_root(package), f"{package}/"):
            if _is_in(name, split):
                yield name, text


def _directory(argument: str, spec: CorpusSpec) -> Iterator[tuple[str, Path | str]]:
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"source: {argument!r} is not a folder; give the folder that holds the text files"
        )
    if _has_splits(root):
        wanted = {HELD_OUT: SPLITS[1:], ALL: SPLITS}.get(spec.split, (spec.split,))
        for part in wanted:
            yield from _files(root / part, "*", ALL, f"{part}/")
    else:
        yield from _files(root, "*", spec.split, "")


def _has_splits(root: Path) -> bool:
    """Whether a folder has splits of its own, as folders of their names."""
    return any((root / split).is_dir() for split in SPLITS)


def _outside_of_splits(root: Path) -> int:
    """How many files lie beside the splits of a folder that has some, and are in none."""
    if not _has_splits(root):
        return 0
    return sum(path.relative_to(root).parts[0] not in SPLITS for path in visible_files(root, "*"))


def _jsonl(argument: str, spec: CorpusSpec) -> Iterator[tuple[str, Path | str]]:
    path = Path(argument).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"source: {argument!r} is not a file; give a file with one JSON object a line"
        )
    for place, row in json_lines(path):
        text = _text_of(row, spec, place)
        name = place.rpartition(", ")[2]
        if _is_in(name, spec.split):
            yield name, text


def _hub(argument: str, spec: CorpusSpec) -> Iterator[tuple[str, Path | str]]:
    rows = hub_rows(argument, spec.split, f"source={spec.source!r}")
    for number, (place, row) in enumerate(rows):
        yield f"row {number}", _text_of(row, spec, place)


def _text_of(row: dict[str, Any], spec: CorpusSpec, place: str) -> str:
    """The text of a row; ValueError with its place where the column is missing or holds something else."""
    try:
        text: str = field_of(row, spec.text_column, str, place)
    except ValueError as error:
        raise ValueError(f"{error} (text_column={spec.text_column!r})") from error
    return text


READERS = {"installed": _installed, "prose": _prose, "dir": _directory, "jsonl": _jsonl, "hub": _hub}


def read_documents(spec: CorpusSpec) -> tuple[list[Document], dict[str, int]]:
    """Documents of a corpus in the order of the hash of their names, and how many were skipped by reason.

    Raises FileNotFoundError or ValueError where the source is missing, ValueError where nothing is left and,
    with file and line, for a row whose `text_column` is missing or holds no text.
    """
    kind, _, argument = spec.source.partition(":")
    skipped = {"wrong encoding or binary": 0, "too short": 0, "too long": 0}
    taken: list[Document] = []
    characters = 0
    named_contents: Iterable[tuple[str, Path | str]] = READERS[kind](argument, spec)
    if kind == "dir" and (outside := _outside_of_splits(Path(argument).expanduser())):
        skipped[f"outside of {', '.join(SPLITS[:2])} and {SPLITS[2]}"] = outside
    if kind != "hub":  # a stream comes in its own order: sorting it would download all of it
        named_contents = sorted(named_contents, key=lambda item: _bucket(item[0]))
    for name, content in named_contents:
        try:
            text = _read_text(content) if isinstance(content, Path) else content
        except ValueError:  # UnicodeDecodeError is one
            skipped["wrong encoding or binary"] += 1
            continue
        if not spec.min_characters <= len(text) <= spec.max_characters:
            skipped["too short" if len(text) < spec.min_characters else "too long"] += 1
            continue
        taken.append(Document(name, text))
        characters += len(text)
        if spec.total_characters is not None and characters >= spec.total_characters:
            break
    if not taken:
        raise ValueError(
            f"source={spec.source!r}, split={spec.split!r}: no document left (skipped: {skipped})"
        )
    return taken, skipped


def content_hash(documents: Iterable[Document]) -> str:
    """SHA-256 over names and texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.name.encode() + b"\0" + document.text.encode() + b"\0")
    return digest.hexdigest()


def present_source(source: str, otherwise: str = "prose:") -> str:
    """The source, or `otherwise` where it is a folder or file that is not on this machine.

    For measurements that prefer a text that not everybody has; what was read is in their records.
    """
    kind, _, argument = source.partition(":")
    is_local = kind in ("dir", "jsonl")
    return otherwise if is_local and not Path(argument).expanduser().exists() else source
