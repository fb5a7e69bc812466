"""The small set as a folder: both halves, and the questions that the test half asks about documents."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sinklora.records.provenance import current_provenance
from sinklora.train.instructions.dataset_folder import check_out, write_dataset
from sinklora.train.instructions.documentation import described_package
from sinklora.train.instructions.lengths import with_lengths
from sinklora.train.instructions.mini import HELD_OUT_PERCENT, MiniSpec, make_mini
from sinklora.train.tokens import tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTIONS = "test_questions"

ABOUT = (
    "Made by `sinklora data mini` from the documentation of installed packages, and from books where "
    "a folder of them was given, in the mix of LongAlpaca-plus: questions about a page whose "
    "answers stand in it, continuations, summaries (the first sentence of a docstring, which was taken "
    "out of the page) and questions for which several files have to be looked through.",
    "No document is in both halves, and what the documentation says twice is read once. "
    "`test_questions.jsonl` has what the test half asks about documents: `context`, `question`, "
    "`answers`, `document` and `id`.",
    "The questions are made by rule from docstrings in the form of numpydoc: they ask for types, defaults, "
    "meanings of parameters, and for what is returned. It is a set to try fine-tuning with, not one that "
    "makes an assistant.",
    "Columns: `instruction` and `output` as Alpaca names them, `kind`, `source` (package and version, or "
    "book), `id`, `document`, `licence`, `file` and `file_sha256`, and lengths.",
)


def build_mini(
    spec: MiniSpec,
    *,
    out: Path,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: bool = True,
) -> Path:
    """Build the small set in the folder `out`: `train` and `test` as parquet and jsonl, a card, a record, and
    `test_questions.jsonl`.

    `tokenizer`: its tokens are counted as well. Raises what `make_mini` raises; then `out` is as it was.
    """
    check_out(out)
    made = make_mini(spec)
    splits = {
        name: with_lengths(
            pd.DataFrame([example.to_dict() for example in examples]), tokenizer, progress=progress
        )
        for name, examples in (("train", made.train), ("test", made.test))
    }
    questions = [
        {
            "id": f"{asked.document}#{asked.id}",
            "context": asked.context,
            "question": asked.question,
            "answers": [asked.answer],
            "document": asked.document,
        }
        for asked in made.questions
    ]
    record = {
        "spec": asdict(spec),
        "packages": [described_package(package) for package in spec.packages],
        "held_out_percent": HELD_OUT_PERCENT,
        "entries_left_out_as_repeated": made.repeated,
        "tokenizer_sha256": None if tokenizer is None else tokenizer_hash(tokenizer),
        **current_provenance(),
    }
    # Where the books lie is of this machine.
    record["spec"]["books"] = Path(spec.books).name
    return write_dataset(
        out,
        splits,
        title="A small set in the mix of LongAlpaca-plus",
        about=ABOUT,
        record=record,
        more={QUESTIONS: questions},
    )
