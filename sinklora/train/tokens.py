"""From documents to token ids: tokenized once, kept memory-mapped, checked by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from sinklora.train.array_cache import kept_arrays
from sinklora.train.sources import CorpusSpec, Document, content_hash, read_documents
from sinklora.user_cache import cache_folder

if TYPE_CHECKING:  # a TrainSpec is read without loading transformers
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedCorpus:
    """Token ids of all documents in one memory-mapped row, with the index at which each document starts.

    `skipped` counts the documents left out, by reason; `sha256` is over names and texts of those taken.
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


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what a tokenizer does: its serialized model and its special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256((described + repr(tokenizer.bos_token_id)).encode()).hexdigest()


def default_cache() -> Path:
    """Where token caches lie: `$SINKLORA_CACHE/tokens`, else `tokens` in sinklora's cache of the user."""
    return cache_folder("tokens")


def tokenize_corpus(
    spec: CorpusSpec, tokenizer: PreTrainedTokenizerBase, *, cache: Path | None = None, progress: bool = True
) -> TokenizedCorpus:
    """Tokenize a corpus once: every document begins with BOS; later calls read the memory-mapped cache.

    The cache is keyed by the hash of texts and tokenizer; a cache file that does not match its recorded
    hash is made anew. Raises ValueError if the tokenizer has no BOS token.
    """
    if tokenizer.bos_token_id is None:
        name = tokenizer.name_or_path
        raise ValueError(
            f"tokenizer={name!r}: has no BOS token, with which documents begin; set one (bos_token, such as "
            "its eos_token), save it with the model in a folder, and give that"
        )
    documents, skipped = read_documents(spec)
    sha256 = content_hash(documents)
    key = hashlib.sha256(f"{sha256} {tokenizer_hash(tokenizer)}".encode()).hexdigest()[:24]
    folder = (cache or default_cache()) / key
    kept = kept_arrays(folder, lambda: _token_arrays(documents, tokenizer, progress))
    return TokenizedCorpus(kept["tokens"], kept["starts"], tuple(d.name for d in documents), sha256, skipped)


def _token_arrays(
    documents: list[Document], tokenizer: PreTrainedTokenizerBase, progress: bool
) -> dict[str, np.ndarray]:
    pieces: list[np.ndarray] = []
    dtype = token_dtype(tokenizer)
    bar = tqdm(total=len(documents), desc="tokenizing", unit="document", disable=not progress)
    for first in range(0, len(documents), 64):
        texts = [document.text for document in documents[first : first + 64]]
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            pieces.append(np.asarray([tokenizer.bos_token_id, *ids], dtype=dtype))
        bar.update(len(texts))
    bar.close()
    return {"tokens": np.concatenate(pieces), "starts": starts_of(pieces)}


def token_dtype(tokenizer: PreTrainedTokenizerBase) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds every token."""
    return np.uint16 if len(tokenizer) <= 2**16 else np.uint32


def starts_of(pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Where each piece begins when they are laid end to end."""
    return np.cumsum([0, *(len(piece) for piece in pieces[:-1])], dtype=np.int64)


def corpus_record(spec: CorpusSpec, corpus: TokenizedCorpus) -> dict[str, Any]:
    """What a result says of its data: the spec, the hash, and the counts."""
    return {
        **asdict(spec),
        "sha256": corpus.sha256,
        "documents": len(corpus.starts),
        "tokens": len(corpus.tokens),
        "skipped": corpus.skipped,
    }
