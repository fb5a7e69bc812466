"""Table 4 on a pretrained model as it is: LongChat's conversations through each cache, answered in words and
by which of the conversation's topics the model finds likeliest.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from sinklora.cache.policies import CachePolicy, policy_key
from sinklora.evaluate.longbench.predictions import chat_format
from sinklora.evaluate.read_prompt import ReadPrompt, end_tokens
from sinklora.evaluate.topics import ANSWER_TOKENS, TopicRecord, is_first_topic, make_topics, read_topics
from sinklora.hf.budget_cache import BudgetCache
from sinklora.pretrained.fetch import model_path
from sinklora.records.runs import remember, run_records
from sinklora.reproduction.model_under_test import ModelUnderTest
from sinklora.reproduction.retrieval.topic_study import data_record


def conversations(
    base: str, folder: Path | None, counts: Mapping[str, int], context: int, lengths: Sequence[int]
) -> tuple[dict[str, list[TopicRecord]], dict[str, int]]:
    """The first `counts` conversations of each of LongChat's files "<name>.jsonl" in `folder` that, with an
    answer, fit in `context` tokens; and how many of each file fit. Files that nothing fits of are left out.

    Without a folder as many conversations are generated of each of `lengths` (tokens). The base must be a
    chat model. Raises FileNotFoundError for a file that is not there.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path(base))
    as_asked = chat_format(tokenizer)

    def fits(record: TopicRecord) -> bool:
        return len(tokenizer(as_asked(record.prompt))["input_ids"]) + ANSWER_TOKENS <= context

    if folder is None:
        most = max(counts.values())
        sets = {f"generated, {n} tokens": n for n in lengths if n < context}
        made = {s: make_topics(tokenizer, tokens=n, records=most, seed=0) for s, n in sets.items()}
        return made, dict.fromkeys(made, most)
    fitting = {name: list(filter(fits, read_topics(folder / f"{name}.jsonl"))) for name in counts}
    chosen = {name: records[: counts[name]] for name, records in fitting.items() if records}
    return chosen, {name: len(fitting[name]) for name in chosen}


def measure_topic_ranks(
    base: str,
    subject: ModelUnderTest,
    sets: Mapping[str, Sequence[TopicRecord]],
    caches: Mapping[str, CachePolicy | None],
    *,
    runs: Path = Path("runs"),
    progress: bool = True,
) -> pd.DataFrame:
    """Ask a chat model every conversation through every cache, one row a conversation and cache: `set`,
    `conversation`, `topics` (how many), `cache`, `wrote`, `correct` (see `is_first_topic`), `nats` (a token
    of each topic's name, in their order) and by these the `rank` of the first topic (1: the likeliest).

    Each set and cache is a run directory of its own. `rows.attrs` record the conversations (`data`) and the
    `runs`.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_path(base))
    ready = cache(subject.ready)
    asked = {"chat_template": tokenizer.chat_template, "max_new_tokens": ANSWER_TOKENS}
    used: list[Path] = []
    frames, data = [], data_record(sets)
    for set_name, records in sets.items():
        for name, policy in caches.items():
            content = {"policy": policy_key(policy), "records": data[set_name]["sha256"]}
            key = {"model": subject.identity, **content, **asked}
            work = partial(_ask, ready, tokenizer, records, policy, f"{set_name}, {name}", progress)
            rows = pd.DataFrame(remember(key, work, runs=runs, prefix="topic-ranks", used=used))
            frames.append(rows.assign(set=set_name, cache=name))
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs |= {"data": data, "runs": run_records(used)}
    return frame


def _ask(
    ready: Callable[[], Any],
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[TopicRecord],
    policy: CachePolicy | None,
    shown: str,
    progress: bool,
) -> list[dict[str, Any]]:
    model, as_asked = ready(), chat_format(tokenizer)
    make: Callable[[], Cache] = DynamicCache if policy is None else partial(BudgetCache, model, policy)
    rows = []
    for record in tqdm(records, desc=shown, disable=not progress):
        read = ReadPrompt(model, tokenizer(as_asked(record.prompt))["input_ids"], make())
        wrote = str(tokenizer.decode(read.greedy(ANSWER_TOKENS, end_tokens(model))))
        names = [tokenizer(topic, add_special_tokens=False)["input_ids"] for topic in record.topics]
        means = [float(np.mean(losses)) for losses in read.nats(names)]
        rows.append(
            {
                "conversation": record.test_id,
                "topics": len(record.topics),
                "wrote": wrote,
                "correct": is_first_topic(wrote, record),
                "nats": means,
                "rank": 1 + sum(mean < means[0] for mean in means[1:]),
            }
        )
    return rows
