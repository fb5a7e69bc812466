"""What a spec trains on, whichever kind it is: rows, the run's key and what its record says of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sinklora.train.conversations import ConversationTemplate
from sinklora.train.examples import content_hash, read_examples
from sinklora.train.instruction_rows import (
    ExampleRows,
    TokenizedExamples,
    ragged_batch,
    template_record,
    tokenize_examples,
)
from sinklora.train.instruction_spec import InstructionSpec, instruction_identity
from sinklora.train.packing import best_fit_rows
from sinklora.train.rows import MixedRows, NeedleRows, PackedRows, rare_rows
from sinklora.train.spec import TrainSpec, identity
from sinklora.train.tokens import corpus_record, tokenize_corpus

Rows = torch.utils.data.Dataset[dict[str, Tensor]]


class TrainingData(NamedTuple):
    """Rows and how they become a batch (None: they are equally long), optimizer `steps`, the run's `key`, and
    what its provenance says of the data.
    """

    rows: Rows
    collate: Callable[[Sequence[dict[str, Tensor]]], dict[str, Tensor]] | None
    steps: int
    key: dict[str, Any]
    record: dict[str, Any]


def training_data(
    spec: TrainSpec | InstructionSpec,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache: Path | None = None,
    progress: bool = True,
) -> TrainingData:
    """The rows that a spec names, tokenized once (see `tokenize_corpus`, `tokenize_examples`)."""
    if isinstance(spec, InstructionSpec):
        return _of_instructions(spec, tokenizer, cache, progress)
    corpus = tokenize_corpus(spec.corpus, tokenizer, cache=cache, progress=progress)
    packed = PackedRows(corpus, spec.context, separate_documents=spec.separate_documents)
    rows: Rows = packed
    if spec.recall_share:
        separate, needed = spec.separate_documents, rare_rows(len(packed), spec.recall_share)
        needles = NeedleRows(tokenizer, spec.context, needed, spec.seed, separate_documents=separate)
        rows = MixedRows(packed, needles, spec.recall_share)
    return TrainingData(rows, None, spec.steps, identity(spec, corpus), corpus_record(spec.corpus, corpus))


def _of_instructions(
    spec: InstructionSpec, tokenizer: PreTrainedTokenizerBase, cache: Path | None, progress: bool
) -> TrainingData:
    examples = read_examples(spec.examples)
    template = ConversationTemplate(tokenizer, spec.template)
    tokens = tokenize_examples(
        examples,
        template,
        context=spec.context,
        long_examples=spec.long_examples,
        cache=cache,
        progress=progress,
    )
    lengths = tokens.lengths
    packed = best_fit_rows(lengths, spec.context) if spec.pack else [[i] for i in range(len(lengths))]
    record = {**asdict(spec.examples), "sha256": content_hash(examples), **_counts(tokens, len(packed))}
    record["filled"] = round(record["tokens"] / (len(packed) * spec.context), 4)
    if progress:
        tqdm.write(told(record, spec.context))
    steps = math.ceil(spec.epochs * math.ceil(len(packed) / spec.batch_size))
    key = instruction_identity(spec, template_record(examples, template), record["sha256"])
    return TrainingData(ExampleRows(tokens, packed), ragged_batch, steps, key, record)


def _counts(tokens: TokenizedExamples, rows: int) -> dict[str, Any]:
    return {
        "examples": len(tokens.starts),
        "truncated": tokens.truncated,
        "dropped": tokens.dropped,
        "tokens": len(tokens.tokens),
        "answer_tokens": int(tokens.labels.sum()),
        "rows": rows,
    }


def told(record: dict[str, Any], context: int) -> str:
    """The record of instructions in a sentence."""
    return (
        f"{record['examples']} examples in {record['rows']} rows of at most {context} tokens, "
        f"{record['filled']:.1%} filled; {record['answer_tokens']} of {record['tokens']} tokens are answers; "
        f"{record['truncated']} examples have lost the middle of a prompt, {record['dropped']} were too long "
        "and left out"
    )
