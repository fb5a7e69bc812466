"""Test texts: pieces of documents that were not trained on, of several packages or books, none twice."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sinklora.evaluate.passages import cut_passages
from sinklora.records.checks import Count, check_fields
from sinklora.records.runs import remember
from sinklora.train.near_duplicates import SHARE, SeenText
from sinklora.train.sources import CorpusSpec, Document, content_hash, read_documents
from sinklora.train.tokens import tokenizer_hash


@dataclass(frozen=True)
class TextSet:
    """`pieces` of `tokens` tokens each, at most `per_document` of one document.

    Packages (of a corpus of installed packages) or documents (of any other) give one each in turn, so that
    none outweighs the others. Raises TypeError or ValueError naming the field.
    """

    corpus: CorpusSpec
    pieces: Count
    tokens: Count
    per_document: Count = 1

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def is_of_packages(self) -> bool:
        """Whether its documents are files of installed packages."""
        return self.corpus.source.partition(":")[0] in ("installed", "prose")


@dataclass(frozen=True)
class Piece:
    """Token ids of a piece, the BOS first.

    `name` is its document's, with its first token; `group` the package or document that it stands for.
    """

    name: str
    group: str
    ids: np.ndarray


@dataclass(frozen=True)
class ChosenTexts:
    """The pieces of a set, and the names of the documents left out because they repeat what was seen."""

    pieces: tuple[Piece, ...]
    near_duplicates: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of names and token ids, in order."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            digest.update(piece.name.encode() + b"\0" + piece.ids.astype("<i8").tobytes())
        return digest.hexdigest()

    def record(self) -> dict[str, Any]:
        """What results say of it."""
        return {
            "sha256": self.sha256,
            "pieces": len(self.pieces),
            "groups": sorted({piece.group for piece in self.pieces}),
            "near_duplicates_left_out": list(self.near_duplicates),
        }


def texts_of(
    sets: Mapping[str, TextSet], tokenizer: Any, seen: Sequence[CorpusSpec], *, runs: Path
) -> dict[str, ChosenTexts]:
    """`choose_texts` for several sets, free of near-duplicates of the `seen` corpora; kept as runs."""
    known = [read_documents(corpus)[0] for corpus in seen]
    key = {"seen": [content_hash(documents) for documents in known], "tokenizer": tokenizer_hash(tokenizer)}
    met: list[SeenText] = []  # made when a set is missing

    def compute(texts: TextSet, documents: list[Document]) -> list[Any]:
        if not met:
            met.append(SeenText(document.text for documents in known for document in documents))
        chosen = choose_texts(texts, documents, tokenizer, met[0])
        return [[[p.name, p.group, p.ids.tolist()] for p in chosen.pieces], chosen.near_duplicates]

    texts_by_set = {}
    for name, texts in sets.items():
        documents, _ = read_documents(texts.corpus)
        spec = {**key, "texts": asdict(texts), "sha256": content_hash(documents)}
        pieces, left_out = remember(spec, partial(compute, texts, documents), runs=runs, prefix="texts")
        texts_by_set[name] = ChosenTexts(
            tuple(Piece(document, group, np.asarray(ids)) for document, group, ids in pieces), tuple(left_out)
        )
    return texts_by_set


def described_texts(
    texts: TextSet, record: Mapping[str, Any], kind: str, seen: Sequence[CorpusSpec] = ()
) -> str:
    """A set of test texts in a sentence, from its record: `kind` says what its documents are, `seen` what was
    trained on, of which packages may be the same.
    """
    groups, trained = record["groups"], _packages(seen) if texts.is_of_packages else set[str]()
    known = sum(group in trained for group in groups)
    unit = ("package" if texts.is_of_packages else "document") + ("s" if len(groups) != 1 else "")
    if not known:
        which = ", none of them trained on"
    elif known == len(groups):
        which = f" that {'were' if known > 1 else 'was'} trained on (unseen files of them)"
    else:
        which = f", {known} of them trained on (unseen files of them)"
    return (
        f"Texts: {record['pieces']} pieces of {kind} from {len(groups)} {unit}{which}; documents left out "
        f"because they repeat training text: {len(record['near_duplicates_left_out'])}."
    )


def _packages(corpora: Sequence[CorpusSpec]) -> set[str]:
    documents = [document for corpus in corpora for document in read_documents(corpus)[0]]
    return {document.name.partition("/")[0] for document in documents}


def choose_texts(
    texts: TextSet, documents: Iterable[Document], tokenizer: Any, seen: SeenText
) -> ChosenTexts:
    """The first pieces of a set, without near-duplicates of what was `seen` or of each other.

    Raises ValueError where the documents do not hold as many.
    """
    by_group: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        by_group[_group(texts, document.name)].append(document)
    chosen: list[Piece] = []
    left_out: list[str] = []
    among = SeenText()
    sources = [
        _pieces(texts, group, of, tokenizer, seen, among, left_out) for group, of in sorted(by_group.items())
    ]
    while sources and len(chosen) < texts.pieces:
        for source in list(sources):
            piece = next(source, None)
            if piece is None:
                sources.remove(source)
            elif len(chosen) < texts.pieces:
                chosen.append(piece)
    if len(chosen) < texts.pieces:
        raise ValueError(
            f"pieces={texts.pieces}: {texts.corpus.source!r} ({texts.corpus.split}) holds {len(chosen)} of "
            f"{texts.tokens} tokens without near-duplicates; take fewer or shorter ones, or more text"
        )
    return ChosenTexts(tuple(chosen), tuple(left_out))


def _group(texts: TextSet, name: str) -> str:
    return name.partition("/")[0] if texts.is_of_packages else name


def _pieces(
    texts: TextSet,
    group: str,
    documents: list[Document],
    tokenizer: Any,
    seen: SeenText,
    among: SeenText,
    left_out: list[str],
) -> Iterator[Piece]:
    """The pieces of a group, document by document."""
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        room = len(ids) // (texts.tokens - 1)
        if not room:
            continue
        if max(seen.share(document.text), among.share(document.text)) >= SHARE:
            left_out.append(document.name)
            continue
        among.add(document.text)
        whole = np.asarray([tokenizer.bos_token_id, *ids], dtype=np.int64)
        for passage in cut_passages([whole], texts.tokens, min(room, texts.per_document)):
            yield Piece(f"{document.name}:{passage.start}", group, passage.ids)
