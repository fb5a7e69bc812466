"""Table 4: LongChat's topic retrieval. Which topic came first in a long conversation?

Records have LongChat's columns (`test_id, prompt, topics, prompt_length`); the answer is `topics[0]`.
Its files are read from a path; `make_topics` writes conversations of the same form of any length.
"""

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicCache

from sinklora.evaluate.statistics import Accuracy
from sinklora.hf.device import input_device
from sinklora.hf.greedy import GREEDY
from sinklora.hf.rope import forget_longest_input
from sinklora.records.jsonl import json_lines
from sinklora.records.placed_fields import field_of, texts_of
from sinklora.train.fitting import longest

ANSWER_TOKENS = 24  # room for a short sentence that names the topic

SUBJECTS = (
    "the history of clocks",
    "how bridges are built",
    "the migration of birds",
    "the making of paper",
    "the rules of chess",
    "the care of roses",
    "the tides of the sea",
    "the work of a baker",
    "the sound of bells",
    "the mapping of caves",
    "the weather of mountains",
    "the printing of books",
    "the life of bees",
    "the colours of minerals",
    "the training of horses",
)

REMARKS = (
    "That is a good question, and there is more than one answer to it.",
    "Most people learn about it by watching somebody who knows it well.",
    "It has changed a good deal over the last hundred years.",
    "The details differ from one country to the next.",
    "It takes patience, and a little luck as well.",
    "There are several books that explain it step by step.",
)

LEAST_REMARKS = 2  # on each topic

SHORTEST_REMARK = 10  # tokens at least, with what the user says to it


@dataclass(frozen=True)
class TopicRecord:
    """One conversation; `topics` in the order in which they were discussed."""

    test_id: int
    prompt: str
    topics: tuple[str, ...]


def read_topics(path: str | Path) -> list[TopicRecord]:
    """Records of a LongChat file (jsonl). Raises ValueError with file and line for a malformed one."""
    lines = enumerate(json_lines(Path(path)))
    records = [_record(fields, place, number) for number, (place, fields) in lines]
    if not records:
        raise ValueError(f"{path}: holds no records")
    return records


def _record(fields: dict[str, Any], place: str, number: int) -> TopicRecord:
    prompt = field_of(fields, "prompt", str, place)
    topics = texts_of(fields, "topics", place)  # an empty topic would be found in every answer
    return TopicRecord(field_of({"test_id": number, **fields}, "test_id", int, place), prompt, topics)


def make_topics(
    tokenizer: PreTrainedTokenizerBase, *, tokens: int, records: int, seed: int
) -> list[TopicRecord]:
    """Conversations over as many topics as fit in `tokens` tokens; where all do, more is said of each.

    Raises ValueError where two topics do not fit.
    """
    rng = random.Random(f"topics/{seed}/{tokens}")

    def fits(talks: Sequence[str]) -> bool:
        return len(tokenizer(_conversation(talks))["input_ids"]) <= tokens

    return [_made(test_id, rng, fits, tokens) for test_id in range(records)]


def _made(
    test_id: int, rng: random.Random, fits: Callable[[Sequence[str]], bool], tokens: int
) -> TopicRecord:
    subjects = rng.sample(SUBJECTS, len(SUBJECTS))
    orders = [rng.sample(REMARKS, len(REMARKS)) for _ in subjects]

    def talks(remarks: int) -> list[str]:
        pairs = zip(subjects, orders, strict=True)
        return [_talk(subject, islice(cycle(order), remarks)) for subject, order in pairs]

    said = talks(max(LEAST_REMARKS, longest(tokens // SHORTEST_REMARK, lambda n: fits(talks(n)))))
    count = longest(len(said), lambda n: fits(said[:n]))
    if count < 2:
        raise ValueError(f"tokens={tokens}: too short for two topics")
    return TopicRecord(test_id, _conversation(said[:count]), tuple(subjects[:count]))


def _talk(subject: str, remarks: Iterable[str]) -> str:
    lines = [f"USER: I would like to discuss the topic of {subject}."]
    for remark in remarks:
        lines += [f"ASSISTANT: {remark}", "USER: I see. What else is there to say?"]
    return "\n".join([*lines[:-1], f"USER: This is all about {subject}. Now to something else."])


def _conversation(talks: Sequence[str]) -> str:
    return "\n".join(
        ["A conversation on several topics:", *talks, "What was the first topic? The first topic was"]
    )


def is_first_topic(answer: str, record: TopicRecord) -> bool:
    """Whether the first topic is named in the answer, and named before any other of the record.

    Case, punctuation and articles do not count. Topics are found as substrings, within words and after a
    "not" too, and a paraphrase is not found. (LongChat's release lets a language model judge.)
    """
    said = _plain(answer)
    places = {topic: said.find(_plain(topic)) for topic in record.topics}
    first = places[record.topics[0]]
    return first >= 0 and all(place < 0 or place >= first for place in places.values())


def _plain(text: str) -> str:
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))


@torch.inference_mode()
def topic_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[TopicRecord],
    make_cache: Callable[[], Cache] = DynamicCache,
    *,
    prompt_format: Callable[[str], str] = str,
    max_new_tokens: int = ANSWER_TOKENS,
    progress: bool = True,
) -> list[str]:
    """What the model writes after each conversation, greedy decoding; one conversation at a time."""
    if model.training:
        raise ValueError("model: is in training mode; call model.eval()")
    answers = []
    for record in tqdm(records, desc="topics", disable=not progress):
        prompt = tokenizer(prompt_format(record.prompt), return_tensors="pt").to(input_device(model))
        forget_longest_input(model)
        written = model.generate(  # type: ignore[operator]
            **prompt,
            past_key_values=make_cache(),
            use_cache=True,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            **GREEDY,
        )
        new = written[0, prompt["input_ids"].shape[1] :]
        answers.append(str(tokenizer.decode(new, skip_special_tokens=True)))
    return answers


def topic_accuracy(answers: Sequence[str], records: Sequence[TopicRecord]) -> Accuracy:
    """Share of conversations whose first topic is given."""
    right = sum(is_first_topic(a, r) for a, r in zip(answers, records, strict=True))
    return Accuracy(right, len(records))
