"""Topic retrieval: files, generated conversations, and what counts as right."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from penalties import penalised
from sinklora.evaluate.topics import (
    TopicRecord,
    is_first_topic,
    make_topics,
    read_topics,
    topic_accuracy,
    topic_answers,
)
from tiny_models import tiny_model

RECORD = TopicRecord(0, "…", ("The history of clocks", "the care of roses"))
SHARED = Path("../shared/data/topics")


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The history of clocks", True),
        ("It was: history of CLOCKS.", True),
        ("the history of clocks, then the care of roses", True),
        ("the care of roses, not the history of clocks", False),
        ("the prehistory of clockstoppers", True),  # a substring is enough, as the docstring says
        ("the care of roses", False),
        ("clocks", False),
        ("", False),
    ],
)
def test_the_first_topic_must_be_named_first(answer: str, right: bool) -> None:
    assert is_first_topic(answer, RECORD) is right


def test_generated_conversations_fit_and_hold_as_many_topics_as_fit(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    short, long = (make_topics(tokenizer, tokens=n, records=3, seed=0) for n in (512, 1024))
    for records, tokens in ((short, 512), (long, 1024)):
        for record in records:
            assert len(tokenizer(record.prompt)["input_ids"]) <= tokens
            places = [record.prompt.index(f"the topic of {topic}.") for topic in record.topics]
            assert places == sorted(places)
    assert len(long[0].topics) > len(short[0].topics) >= 2
    assert len(set(short[0].topics)) == len(short[0].topics)
    assert short == make_topics(tokenizer, tokens=512, records=3, seed=0)
    assert short != make_topics(tokenizer, tokens=512, records=3, seed=1)
    with pytest.raises(ValueError, match="tokens=64"):
        make_topics(tokenizer, tokens=64, records=1, seed=0)


@pytest.mark.parametrize("tokens", [512, 2048, 8192])
def test_conversations_are_about_as_long_as_asked(tokenizer: PreTrainedTokenizerBase, tokens: int) -> None:
    for record in make_topics(tokenizer, tokens=tokens, records=2, seed=0):
        assert 0.8 * tokens <= len(tokenizer(record.prompt)["input_ids"]) <= tokens


def test_files_are_read_and_damage_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "topics.jsonl"
    line = json.dumps({"test_id": 4, "prompt": "p", "topics": ["a", "b"], "prompt_length": -1})
    path.write_text(f"{line}\n{line}\n")
    assert read_topics(path) == [TopicRecord(4, "p", ("a", "b"))] * 2
    path.write_text("")
    with pytest.raises(ValueError, match="no records"):
        read_topics(path)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (b"{", "not a line of JSON"),
        (b'{"prompt": "\xff", "topics": ["a"]}', "not a line of JSON"),
        (b"[1]", "a list"),
        (b'{"topics": ["b"]}', "no 'prompt'; there are 'topics'"),
        (b'{"prompt": "p"}', "no 'topics'; there are 'prompt'"),
        (b'{"prompt": "p", "topics": []}', r"'topics' is \[\]"),
        (b'{"prompt": "p", "topics": "abc"}', "'topics' is 'abc'"),
        (b'{"prompt": "p", "topics": ["b", " "]}', "'topics' is"),
        (b'{"prompt": "p", "topics": ["b"], "test_id": "x"}', "'test_id' is 'x'"),
    ],
)
def test_malformed_records_are_named_with_their_line(tmp_path: Path, broken: bytes, words: str) -> None:
    path = tmp_path / "topics.jsonl"
    path.write_bytes(b'{"prompt": "p", "topics": ["b"]}\n' + broken + b"\n")
    with pytest.raises(ValueError, match=rf"topics\.jsonl, line 2: {words}"):
        read_topics(path)


def test_a_line_ends_at_a_newline_alone(tmp_path: Path) -> None:
    prompt = "one\u2028two\u0085three"
    path = tmp_path / "topics.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "topics": ["b"]}, ensure_ascii=False) + "\n", "utf-8")
    assert read_topics(path) == [TopicRecord(0, prompt, ("b",))]


@pytest.mark.skipif(not SHARED.is_dir(), reason="LongChat's files are not there")
def test_longchats_own_files() -> None:
    records = read_topics(SHARED / "5_topics.jsonl")
    assert len(records) == 50 and all(len(r.topics) == 5 for r in records)
    assert topic_accuracy([r.topics[0] for r in records], records).share == 1.0


def test_answers_and_their_accuracy(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model("llama-gqa", vocab_size=4096, max_position_embeddings=1024)
    records = make_topics(tokenizer, tokens=512, records=2, seed=0)
    answers = topic_answers(model, tokenizer, records, max_new_tokens=24, progress=False)
    assert len(answers) == 2 and topic_accuracy(answers, records).correct == 0
    with penalised(model):
        assert topic_answers(model, tokenizer, records, max_new_tokens=24, progress=False) == answers
    with pytest.raises(ValueError, match="training mode"):
        topic_answers(model.train(), tokenizer, records)
