"""Corpora: from names to documents, from documents to a token cache, from tokens to packed rows.

A corpus is named by a string: ``installed:torch,sympy`` (Python sources of installed packages),
``dir:PATH`` and ``jsonl:PATH`` (local text), ``hub:NAME`` (a data set of the Hugging Face hub, or a local
folder in its format).
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sinklora.files import atomic_write, file_hash

SPLITS = ("train", "validation", "test")
TRAIN_PACKAGES = ("torch", "transformers", "sympy", "networkx", "numpy")
TEST_PACKAGES = ("pandas", "matplotlib")
HELD_OUT_PERCENT = 4  # of the documents: half for validation, half (where no test split is named) for test


@dataclass(frozen=True)
class CorpusSpec:
    """Which documents: a source by name, a split, and limits on their length (characters).

    ``total_characters`` stops after that much text; documents come in the order of the hash of their
    names, so a smaller limit selects a prefix of a larger one.
    """

    source: str = "installed:"
    split: str = "train"
    min_characters: int = 200
    max_characters: int = 400_000
    total_characters: int | None = None
    text_column: str = "text"

    def __post_init__(self) -> None:
        kind = self.source.partition(":")[0]
        if kind not in READERS or ":" not in self.source:
            raise ValueError(
                f"source={self.source!r}: expected one of {', '.join(k + ':…' for k in READERS)}"
            )
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r}: expected one of {SPLITS}")
        if not 0 <= self.min_characters <= self.max_characters:
            raise ValueError(
                f"min_characters={self.min_characters}, max_characters={self.max_characters}: "
                "expected 0 <= min_characters <= max_characters"
            )
        if self.total_characters is not None and self.total_characters < 1:
            raise ValueError(f"total_characters={self.total_characters}: expected a positive number or None")


@dataclass(frozen=True)
class Document:
    name: str
    text: str


@dataclass(frozen=True)
class TokenizedCorpus:
    """Token ids of all documents in one memory-mapped row, with the index at which each document starts.

    ``skipped`` counts the documents left out, by reason; ``sha256`` is over names and texts of those taken.
    """

    tokens: np.ndarray
    starts: np.ndarray
    names: tuple[str, ...]
    sha256: str
    skipped: dict[str, int]

    def documents(self) -> list[np.ndarray]:
        """Token ids of each document, BOS first, without copying."""
        ends = [*self.starts[1:].tolist(), len(self.tokens)]
        return [self.tokens[start:end] for start, end in zip(self.starts.tolist(), ends, strict=True)]


def _bucket(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def split_of(name: str) -> str:
    """The split that a document's name falls into where its source has no splits of its own (96 / 2 / 2
    percent).
    """
    percent = _bucket(name) % 100
    if percent >= HELD_OUT_PERCENT:
        return "train"
    return "validation" if percent < HELD_OUT_PERCENT // 2 else "test"


def _package_root(package: str) -> Path:
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


def _files(root: Path, pattern: str, split: str | None, prefix: str) -> Iterator[tuple[str, Path | str]]:
    for path in sorted(root.rglob(pattern)):
        name = f"{prefix}{path.relative_to(root).as_posix()}"
        if path.is_file() and (split is None or split_of(name) == split):
            yield name, path


def _installed(argument: str, spec: CorpusSpec) -> Iterator[tuple[str, Path | str]]:
    """Without named packages: TRAIN_PACKAGES for train and validation, TEST_PACKAGES (never trained on)
    for test.
    """
    if argument:
        packages: tuple[str, ...] = tuple(argument.split(","))
        split: str | None = spec.split
    else:
        packages = TEST_PACKAGES if spec.split == "test" else TRAIN_PACKAGES
        split = None if spec.split == "test" else spec.split
    for package in packages:
        for name, path in _files(_package_root(package), "*.py", None, f"{package}/"):
            # Held-out files of the training packages are never trained on, whichever of the two held-out
            # halves.
            if split is None or split_of(name) == split:
                yield name, path


def _directory(argument: str, spec: CorpusSpec) -> Iterator[tuple[str, Path | str]]:
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(
            f"source: {argument!r} is not a folder; give the folder that holds the text files"
        )
    if any((root / split).is_dir() for split in SPLITS):
        yield from _files(root / spec.split, "*", None, f"{spec.split}/")
    else:
        yield from _files(root, "*", spec.split, "")


def _jsonl(argument: str, spec: CorpusSpec) -> Iterator[tuple[str, Path | str]]:
    path = Path(argument).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"source: {argument!r} is not a file; give a file with one JSON object a line"
        )
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = json.loads(line)[spec.text_column]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a JSON object with {spec.text_column!r} ({error})"
                ) from error
            if split_of(f"line {number}") == spec.split:
                yield f"line {number}", str(text)


def _hub(argument: str, spec: CorpusSpec) -> Iterator[tuple[str, Path | str]]:
    from datasets import load_dataset

    rows = load_dataset(argument, split=spec.split, streaming=True)
    for number, row in enumerate(rows):
        if spec.text_column not in row:
            raise ValueError(f"text_column={spec.text_column!r}: {argument} has the columns {sorted(row)}")
        yield f"row {number}", row[spec.text_column]


READERS = {"installed": _installed, "dir": _directory, "jsonl": _jsonl, "hub": _hub}


def read_documents(spec: CorpusSpec) -> tuple[list[Document], dict[str, int]]:
    """Documents of a corpus in the order of the hash of their names, and how many were skipped for which
    reason.

    Raises FileNotFoundError or ValueError where the source is missing, and ValueError where nothing is left.
    """
    kind, _, argument = spec.source.partition(":")
    skipped = {"wrong encoding or binary": 0, "too short": 0, "too long": 0}
    taken: list[Document] = []
    characters = 0
    found: Iterable[tuple[str, Path | str]] = READERS[kind](argument, spec)
    if kind != "hub":  # a stream comes in its own order: sorting it would download all of it
        found = sorted(found, key=lambda item: _bucket(item[0]))
    for name, content in found:
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
        digest.update(document.name.encode() + b"\0" + document.text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what a tokenizer does: its serialized model and its special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256((described + repr(tokenizer.bos_token_id)).encode()).hexdigest()


def default_cache() -> Path:
    """Where token caches lie: $SINKLORA_CACHE, else the user's cache folder."""
    return Path(os.environ.get("SINKLORA_CACHE", "~/.cache/sinklora")).expanduser() / "tokens"


def tokenize_corpus(
    spec: CorpusSpec, tokenizer: PreTrainedTokenizerBase, *, cache: Path | None = None, progress: bool = True
) -> TokenizedCorpus:
    """Tokenize a corpus once: every document begins with BOS; later calls read the memory-mapped cache.

    The cache is keyed by the hash of texts and tokenizer; a cache file that does not match its recorded
    hash is made anew. Raises ValueError if the tokenizer has no BOS token.
    """
    if tokenizer.bos_token_id is None:
        raise ValueError("tokenizer: has no BOS token; set tokenizer.bos_token before tokenizing")
    documents, skipped = read_documents(spec)
    sha256 = content_hash(documents)
    key = hashlib.sha256(f"{sha256} {tokenizer_hash(tokenizer)}".encode()).hexdigest()[:24]
    folder = (cache or default_cache()) / key
    if not _intact(folder):
        _write_tokens(folder, documents, tokenizer, progress)
    tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
    starts = np.load(folder / "starts.npy", allow_pickle=False)
    return TokenizedCorpus(tokens, starts, tuple(d.name for d in documents), sha256, skipped)


def _intact(folder: Path) -> bool:
    try:
        recorded = json.loads((folder / "sha256.json").read_text())
        return bool(recorded) and all(file_hash(folder / name) == digest for name, digest in recorded.items())
    except (OSError, json.JSONDecodeError, AttributeError):
        return False


def _write_tokens(
    folder: Path, documents: list[Document], tokenizer: PreTrainedTokenizerBase, progress: bool
) -> None:
    pieces: list[np.ndarray] = []
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    bar = tqdm(total=len(documents), desc="tokenizing", unit="document", disable=not progress)
    for first in range(0, len(documents), 64):
        texts = [document.text for document in documents[first : first + 64]]
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            pieces.append(np.asarray([tokenizer.bos_token_id, *ids], dtype=dtype))
        bar.update(len(texts))
    bar.close()
    starts = np.cumsum([0, *(len(piece) for piece in pieces[:-1])], dtype=np.int64)
    arrays = {"tokens.npy": np.concatenate(pieces), "starts.npy": starts}
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        temporary = folder / f".{name}.{os.getpid()}.npy"
        np.save(temporary, array, allow_pickle=False)
        os.replace(temporary, folder / name)
    hashes = {name: file_hash(folder / name) for name in arrays}
    atomic_write(folder / "sha256.json", json.dumps(hashes))


class PackedRows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Documents laid end to end and cut into rows of ``context`` tokens; the last, shorter row is left out.

    A row is ``input_ids`` and ``labels`` (int64 [context]); with ``separate_documents`` also
    ``position_ids`` that restart at 0 where a document starts, which keeps attention inside each document.
    The first token of a document is no label there: nothing precedes it.
    """

    def __init__(self, corpus: TokenizedCorpus, context: int, *, separate_documents: bool = False) -> None:
        if context < 2:
            raise ValueError(f"context={context}: expected at least 2 tokens")
        if len(corpus.tokens) < context:
            raise ValueError(
                f"context={context}: the corpus has only {len(corpus.tokens)} tokens; "
                "take more documents or a shorter context"
            )
        self.corpus, self.context, self.separate_documents = corpus, context, separate_documents

    def __len__(self) -> int:
        return len(self.corpus.tokens) // self.context

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        first = index * self.context
        ids = torch.from_numpy(self.corpus.tokens[first : first + self.context].astype(np.int64))
        row = {"input_ids": ids, "labels": ids.clone()}
        if self.separate_documents:
            positions = self._positions(first)
            row["position_ids"] = positions
            row["labels"][positions == 0] = -100
        return row

    def _positions(self, first: int) -> torch.Tensor:
        index = np.arange(first, first + self.context)
        starts = self.corpus.starts
        start_of = starts[np.searchsorted(starts, index, side="right") - 1]
        return torch.from_numpy(index - np.maximum(start_of, first))


def corpus_record(spec: CorpusSpec, corpus: TokenizedCorpus) -> dict[str, Any]:
    """What a result says of its data: the spec, the hash, and the counts."""
    return {
        **asdict(spec),
        "sha256": corpus.sha256,
        "documents": len(corpus.starts),
        "tokens": len(corpus.tokens),
        "skipped": corpus.skipped,
    }
