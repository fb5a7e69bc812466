"""Table 4: the first topic of a conversation, asked of several models; each model's answers are a run
directory, read back the next time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.longbench.predictions import as_it_is, chat_format
from sinklora.evaluate.statistics import Accuracy
from sinklora.evaluate.topics import (
    ANSWER_TOKENS,
    TopicRecord,
    is_first_topic,
    make_topics,
    read_topics,
    topic_accuracy,
    topic_answers,
)
from sinklora.hf.budget_cache import BudgetCache
from sinklora.records.checks import Count, Distinct, check_counts, check_value
from sinklora.records.files import json_hash
from sinklora.records.runs import remember
from sinklora.reproduction.model_under_test import ModelUnderTest, interpolated_name
from sinklora.reproduction.retrieval.study import RetrievalStudy, models_under_test

Sets = Mapping[str, Sequence[TopicRecord]]

Written = dict[str, dict[str, list[str]]]  # by model and set


def topic_sets(
    files: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    lengths: Sequence[int],
    records: int,
    chat: bool = False,
) -> dict[str, list[TopicRecord]]:
    """The conversations of LongChat's files, by the files' names.

    Without files so many `records` are generated of each of `lengths` (tokens). Raises FileNotFoundError for
    a file that is not there, ValueError for one without conversations, for none that are to be generated, and
    for `chat` with a tokenizer that has no chat template.
    """
    if chat:
        chat_format(tokenizer)
    if files:
        return {Path(file).stem: read_topics(file) for file in files}
    check_value("lengths", tuple(lengths), Distinct[Count])
    check_counts(records=records)
    return {f"{n} tokens": make_topics(tokenizer, tokens=n, records=records, seed=0) for n in lengths}


def data_record(sets: Sets) -> dict[str, Any]:
    """What results say of the conversations: of each set how many, and the hash of their contents."""
    return {
        name: {"conversations": len(records), "sha256": json_hash([asdict(record) for record in records])}
        for name, records in sets.items()
    }


def chance_of_topics(sets: Sets) -> dict[str, float]:
    """How often naming any topic of a conversation names its first, by set."""
    return {name: sum(1 / len(r.topics) for r in records) / len(records) for name, records in sets.items()}


def models_of_first_seed(study: RetrievalStudy, runs: Path, *, progress: bool = True) -> list[ModelUnderTest]:
    """The models of a study that are asked for topics: what needs no training and the first seed's, none of
    them interpolated further.
    """
    further = {interpolated_name(pattern, study.further) for pattern in study.patterns}
    models = models_under_test(study, runs, None, progress)
    return [m for m in models if m.name not in further and m.seed in (None, study.seeds[0])]


def written_topics(
    asked: Iterable[ModelUnderTest],
    tokenizer: PreTrainedTokenizerBase,
    sets: Sets,
    *,
    policy: CachePolicy | None = None,
    chat: bool = False,
    runs: Path = Path("runs"),
    used: list[Path] | None = None,
    progress: bool = True,
) -> Written:
    """What each model wrote, by model, then by set of conversations.

    `policy`: read and answer through a `BudgetCache` with this policy. `chat`: conversations are put into the
    tokenizer's chat template. The directories of the runs are added to `used`.
    Raises ValueError for `chat` with a tokenizer that has none.
    """
    prompt_format = chat_format(tokenizer) if chat else as_it_is
    spec = {
        "policy": policy_key(policy),
        "chat_template": tokenizer.chat_template if chat else None,
        "max_new_tokens": ANSWER_TOKENS,
        "sets": {name: record["sha256"] for name, record in data_record(sets).items()},
    }
    written = {}
    for subject in asked:
        answer = partial(topic_answers, prompt_format=prompt_format, progress=progress)
        work = partial(_ask, subject, tokenizer, sets, policy, answer)
        key = {**spec, "model": subject.identity}
        written[subject.name] = remember(key, work, runs=runs, prefix="topics", name="answers", used=used)
    return written


def topic_accuracies(written: Written, sets: Sets) -> dict[str, dict[str, Accuracy]]:
    """How often the first topic was named, by model, then by set."""
    return {
        model: {name: topic_accuracy(answers[name], records) for name, records in sets.items()}
        for model, answers in written.items()
    }


def topic_lines(written: Written, sets: Sets) -> pd.DataFrame:
    """One row a model and conversation: `model`, `set`, `conversation` (its id), `first topic`, `topics` (how
    many), `wrote`, `correct`.
    """
    lines = [
        (
            model,
            name,
            record.test_id,
            record.topics[0],
            len(record.topics),
            wrote,
            is_first_topic(wrote, record),
        )
        for model, answers in written.items()
        for name, records in sets.items()
        for record, wrote in zip(records, answers[name], strict=True)
    ]
    columns = ["model", "set", "conversation", "first topic", "topics", "wrote", "correct"]
    return pd.DataFrame(lines, columns=columns)


def _ask(
    subject: ModelUnderTest,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sets,
    policy: CachePolicy | None,
    answer: Callable[..., list[str]],
) -> dict[str, list[str]]:
    model: Any = subject.ready()
    make: Callable[[], Cache] = DynamicCache if policy is None else partial(BudgetCache, model, policy)
    return {name: answer(model, tokenizer, records, make) for name, records in sets.items()}
