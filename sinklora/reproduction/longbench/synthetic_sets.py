"""Synthetic data sets in LongBench's format, made of Python sources: one per category, for models and
machines too small for LongBench. They are not LongBench, and their names (`small_…`) say so.
"""

import hashlib
import random
from collections.abc import Callable, Sequence

from sinklora.evaluate.longbench.records import Record
from sinklora.evaluate.longbench.tasks import SMALL, task_of
from sinklora.records.checks import check_choice, check_counts
from sinklora.reproduction.longbench.synthetic_questions import DRAFTERS, Draft, Sources

ATTEMPTS = 60  # drafts for each example wanted, before giving up


def synthetic_dataset(
    name: str,
    documents: Sequence[tuple[str, str]],
    *,
    examples: int,
    count_tokens: Callable[[str], int],
    tokens: int,
    seed: int,
) -> list[Record]:
    """`examples` records of the synthetic data set `name` (a key of SMALL) from `documents`, pairs of a path
    like `package/module.py` and its Python source.

    The whole prompt, LongBench's wording included, has at most `tokens` tokens by `count_tokens`. The same
    arguments give the same records; `length` is the context's words, as in LongBench.
    Raises ValueError for bad arguments, and where the documents and the budget do not give enough examples.
    """
    check_choice("name", name, SMALL)
    check_counts(examples=examples, tokens=tokens, documents=len(documents))
    task = task_of(name)

    def fits(draft: Draft) -> bool:
        return count_tokens(task.prompt(draft.context, draft.input)) <= tokens

    sources = Sources(documents, random.Random(f"{name}/{seed}"), fits)
    records: dict[str, Record] = {}
    for _ in range(ATTEMPTS * examples):
        draft = DRAFTERS[name](sources)
        if draft is not None and fits(draft):
            record = _record(name, draft)
            records.setdefault(record.id, record)
        if len(records) == examples:
            return list(records.values())
    raise ValueError(
        f"examples={examples}: only {len(records)} of {name} found in {len(documents)} documents with "
        f"tokens={tokens}; give more documents, more tokens, or ask for fewer"
    )


def _record(name: str, draft: Draft) -> Record:
    content = f"{name}\0{draft.context}\0{draft.input}"
    return Record(
        input=draft.input,
        context=draft.context,
        answers=(draft.answer,),
        length=len(draft.context.split()),
        dataset=name,
        language="python" if name == "small_lcc" else "en",
        all_classes=draft.all_classes,
        id=hashlib.sha256(content.encode()).hexdigest()[:32],
    )
