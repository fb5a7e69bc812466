"""Context extension compared over attention patterns: train each with each seed, test all with full
attention (Tables 1, 2).

Training runs and measurements are run directories: a stopped study goes on where it was, a finished one is
read back. `comparison` says what is made of the measurements.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field
from torch import nn
from transformers import AutoTokenizer

from sinklora.evaluate.perplexity import measure_perplexity
from sinklora.hf.device import default_device
from sinklora.pretrained.fetch import model_path
from sinklora.records.checks import Count, Distinct, check_fields
from sinklora.records.runs import remember
from sinklora.reproduction.names import UNTRAINED
from sinklora.train.run import load_base, load_trained, train
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec, base_hash
from sinklora.train.tokens import TokenizedCorpus, corpus_record, tokenize_corpus

TestSets = dict[str, tuple[list[np.ndarray], TokenizedCorpus]]


@dataclass(frozen=True)
class ExtensionStudy:
    """What is compared: `training` gives all but pattern and seed; `contexts` and `stride` in tokens.

    Of each test set the first `documents` documents of at least `document_tokens` tokens are taken,
    cut to that length, so that every context length predicts the same tokens.
    Raises ValueError naming the argument for anything that training or testing would refuse later.
    """

    training: TrainSpec
    patterns: Distinct[str]
    seeds: Distinct[int]
    test_sets: Annotated[dict[str, CorpusSpec], Field(min_length=1)]
    contexts: Distinct[Count]
    stride: Count
    documents: Count
    document_tokens: Count
    batch_size: Count = 4

    def __post_init__(self) -> None:
        check_fields(self)
        if "full" not in self.patterns:
            raise ValueError(f"patterns={self.patterns}: 'full' is needed, the others are compared with it")
        if self.stride >= min(self.contexts):
            raise ValueError(
                f"stride={self.stride}: expected less than the shortest context, {min(self.contexts)}"
            )
        if self.document_tokens < max(self.contexts):
            raise ValueError(
                f"document_tokens={self.document_tokens}: expected at least the longest context, "
                f"{max(self.contexts)}"
            )
        for _ in self.specs():  # an unknown pattern is named now, not after the first run
            pass

    def specs(self) -> Iterator[TrainSpec]:
        """The training runs of the study, seed by seed."""
        for seed in self.seeds:
            for pattern in self.patterns:
                yield dataclasses.replace(self.training, pattern=pattern, seed=seed)


def measure(
    study: ExtensionStudy, *, runs: Path, cache: Path | None = None, progress: bool = True
) -> pd.DataFrame:
    """Train what is missing and test everything: one row per method, seed, test set and context.

    Columns: `method`, `seed` (missing for the base without fine-tuning, its positions interpolated),
    `test_set`, `context`, `perplexity`, `tokens` (predicted), `documents`, `attention` (at test
    time). `rows.attrs["data"]` records the test sets.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path(study.training.base))
    sets = {name: _test_documents(study, name, tokenizer, cache) for name in study.test_sets}
    base_key = {
        "base": study.training.base,
        "base_sha256": base_hash(study.training.base),
        "rope": study.training.rope,
        "extended_to": study.training.context,
    }
    load: Callable[[], nn.Module] = partial(load_base, study.training)
    rows = _measured(study, sets, UNTRAINED, None, base_key, load, runs, progress)
    for spec in study.specs():
        run = train(spec, runs=runs, cache=cache, progress=progress)
        load = partial(load_trained, run, spec)
        rows += _measured(study, sets, spec.pattern, spec.seed, {"run": run.path.name}, load, runs, progress)
    frame = pd.DataFrame(rows).astype({"seed": "Int64"})
    frame.attrs["data"] = _data(study, sets)
    return frame


def _data(study: ExtensionStudy, sets: TestSets) -> dict[str, Any]:
    return {name: corpus_record(study.test_sets[name], corpus) for name, (_, corpus) in sets.items()}


def _test_documents(
    study: ExtensionStudy, name: str, tokenizer: Any, cache: Path | None
) -> tuple[list[np.ndarray], TokenizedCorpus]:
    corpus = tokenize_corpus(study.test_sets[name], tokenizer, cache=cache)
    long = [d[: study.document_tokens] for d in corpus.documents() if len(d) >= study.document_tokens]
    if len(long) < study.documents:
        raise ValueError(
            f"test set {name!r}: {len(long)} documents of {study.document_tokens} tokens, "
            f"{study.documents} wanted; "
            "take more of the corpus (total_characters) or shorter documents"
        )
    return long[: study.documents], corpus


def _measured(
    study: ExtensionStudy,
    sets: TestSets,
    method: str,
    seed: int | None,
    key: dict[str, Any],
    load: Callable[[], nn.Module],
    runs: Path,
    progress: bool,
) -> list[dict[str, Any]]:
    """The rows of one model, read back if they were measured before."""
    asked = {name: getattr(study, name) for name in ("contexts", "stride", "documents", "document_tokens")}

    def compute() -> list[dict[str, Any]]:
        model = load()
        return [
            _row(study, method, seed, name, context, model, documents, progress)
            for name, (documents, _) in sets.items()
            for context in study.contexts
        ]

    spec = {"model": key, "data": _data(study, sets), **asked}
    rows: list[dict[str, Any]] = remember(spec, compute, runs=runs, prefix="perplexity")
    return rows


def _row(
    study: ExtensionStudy,
    method: str,
    seed: int | None,
    test_set: str,
    context: int,
    model: nn.Module,
    documents: Sequence[np.ndarray],
    progress: bool,
) -> dict[str, Any]:
    result = measure_perplexity(
        model,
        documents,
        context=context,
        stride=study.stride,
        batch_size=study.batch_size,
        device=default_device(),
        progress=progress,
    )
    return {
        "method": method,
        "seed": seed,
        "test_set": test_set,
        "context": context,
        "perplexity": result.perplexity,
        "tokens": result.tokens,
        "documents": result.documents,
        "attention": result.attention,
    }
