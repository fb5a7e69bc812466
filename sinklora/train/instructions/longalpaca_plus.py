"""LongAlpaca-plus: the paper's data of supervised fine-tuning, mixed of four published sources."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from sinklora.records.checks import check_counts
from sinklora.records.provenance import current_provenance
from sinklora.train.instructions.dataset_folder import check_out, write_dataset
from sinklora.train.instructions.examples import (
    BOOKSUM,
    KINDS,
    LONGQA,
    MIX,
    NATURAL_QUESTIONS,
    REDPAJAMA,
    TITLES,
    Example,
    mixed_counts,
)
from sinklora.train.instructions.lengths import with_lengths
from sinklora.train.instructions.natural_questions import read_natural_question
from sinklora.train.instructions.other_sources import read_booksum, read_longqa, read_redpajama
from sinklora.train.instructions.sampling import Repetitions, Sample, SourceReader, sample
from sinklora.train.instructions.source_rows import SourceFiles, source_files
from sinklora.train.tokens import tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READERS: Mapping[str, SourceReader] = MappingProxyType(
    {
        name: SourceReader(name, KINDS[name], licence, read)
        for name, licence, read in (
            (NATURAL_QUESTIONS, "CC-BY-SA-3.0", read_natural_question),
            (REDPAJAMA, "of each part its origin's (see RedPajama-Data)", read_redpajama),
            (BOOKSUM, "BSD-3-Clause, for research; summaries: their publishers'", read_booksum),
            (LONGQA, "CC-BY-NC-4.0", read_longqa),
        )
    }
)

ABOUT = (
    "Made by `sinklora data longalpaca-plus` in the mix of the paper SinkLoRA (arXiv 2406.05678): "
    f"{', '.join(f'{TITLES[name]} {share / 10:g} %' for name, share in MIX.items())}.",
    "Columns: `instruction` and `output` as Alpaca names them, `kind`, `source`, `id` and `document` in that "
    "source, its `licence`, `file` and `file_sha256` that it was read from, and lengths. `record.json` has "
    "the seed, the versions, and what became of the rows of every source.",
    "The paper says how many examples it takes of each source, and not how it makes them: the words around "
    "them, the cut of RedPajama's texts and the choice of answers are this project's.",
    "Each example is under the licence of its source; LongQA's forbids commercial use.",
)


def build_longalpaca_plus(
    sources: Mapping[str, str],
    *,
    out: Path,
    total: int = 28_000,
    seed: int = 0,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    most_rows: int | None = None,
    progress: bool = True,
) -> Path:
    """Build LongAlpaca-plus in the folder `out`: `train.parquet`, `train.jsonl`, `README.md`, `record.json`.

    `sources` names files, folders or data sets of the hub (hub:NAME) for `nq`, `redpajama`, `booksum` and
    `longqa`. The same files, seed and total give the same examples. `tokenizer`: its tokens are counted as
    well. `most_rows`: read no more of each source. Raises ValueError naming the source that is missing,
    unknown or too short, FileNotFoundError for a path that is not there, and ValueError with the place of a
    damaged row; then `out` is as it was. Paper, supervised fine-tuning.
    """
    check_out(out)
    counts = mixed_counts(total)
    check_counts(0, seed=seed)
    if most_rows is not None:
        check_counts(most_rows=most_rows)
    _check_names(sources)
    files = {name: source_files(name, sources[name]) for name in MIX}
    repetitions = Repetitions()
    samples = {
        name: sample(
            READERS[name],
            files[name].files,
            counts[name],
            seed=seed,
            repetitions=repetitions,
            most_rows=most_rows,
            progress=progress,
        )
        for name in MIX
    }
    examples = _table([one for drawn in samples.values() for one in drawn.examples])
    counted = with_lengths(examples, tokenizer, progress=progress)
    record = {
        "total": total,
        "seed": seed,
        "most_rows": most_rows,
        "tokenizer_sha256": None if tokenizer is None else tokenizer_hash(tokenizer),
        "sources": {name: _source_record(files[name], samples[name]) for name in MIX},
        **current_provenance(),
    }
    return write_dataset(out, {"train": counted}, title="LongAlpaca-plus", about=ABOUT, record=record)


def _check_names(sources: Mapping[str, str]) -> None:
    known = ", ".join(MIX)
    if unknown := sorted(set(sources) - set(MIX)):
        raise ValueError(f"sources: no source is called {unknown[0]!r}; there are {known}")
    if missing := [name for name in MIX if name not in sources]:
        raise ValueError(
            f"sources: {' and '.join(missing)} ({', '.join(TITLES[name] for name in missing)}) not given; "
            f"the mix needs {known}"
        )


def _table(examples: list[Example]) -> pd.DataFrame:
    return pd.DataFrame([example.to_dict() for example in examples])


def _source_record(read: SourceFiles, drawn: Sample) -> dict[str, Any]:
    return {
        "files": {file.name: file.sha256 for file in read.files},
        "passed_over": read.passed_over,
        "examples": len(drawn.examples),
        "rows": drawn.rows,
        "unusable": drawn.unusable,
        "near_duplicates": drawn.near_duplicates,
    }
