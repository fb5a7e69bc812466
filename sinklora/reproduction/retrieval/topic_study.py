"""Table 4: the first topic of a conversation, asked of several models; each model's answers are a run
directory, read back the next time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.longbench.predictions import as_it_is, chat_format
from sinklora.evaluate.statistics import Accuracy
from sinklora.evaluate.topics import ANSWER_TOKENS, TopicRecord, topic_accuracy, topic_answers
from sinklora.hf.budget_cache import BudgetCache
from sinklora.records.files import json_hash
from sinklora.records.runs import remember
from sinklora.reproduction.model_under_test import ModelUnderTest

Sets = Mapping[str, Sequence[TopicRecord]]


def measure_topics(
    asked: Iterable[ModelUnderTest],
    tokenizer: PreTrainedTokenizerBase,
    sets: Sets,
    *,
    policy: CachePolicy | None = None,
    chat: bool = False,
    runs: Path = Path("runs"),
    used: list[Path] | None = None,
    progress: bool = True,
) -> dict[str, dict[str, Accuracy]]:
    """Accuracy by model, then by set of conversations.

    `policy`: read and answer through a `BudgetCache` with this policy. `chat`: conversations are put into the
    tokenizer's chat template. The directories of the runs are added to `used`.
    Raises ValueError for `chat` with a tokenizer that has none.
    """
    prompt_format = chat_format(tokenizer) if chat else as_it_is
    spec = {
        "policy": policy_key(policy),
        "chat_template": tokenizer.chat_template if chat else None,
        "max_new_tokens": ANSWER_TOKENS,
        "sets": {name: json_hash([asdict(record) for record in records]) for name, records in sets.items()},
    }
    found = {}
    for subject in asked:
        answer = partial(topic_answers, prompt_format=prompt_format, progress=progress)
        work = partial(_ask, subject, tokenizer, sets, policy, answer)
        key = {**spec, "model": subject.identity}
        wrote = remember(key, work, runs=runs, prefix="topics", name="answers", used=used)
        found[subject.name] = {name: topic_accuracy(wrote[name], records) for name, records in sets.items()}
    return found


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
