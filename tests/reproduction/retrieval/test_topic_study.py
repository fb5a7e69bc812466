"""Topic retrieval by several models: where they are asked, what is kept, what a stopped run does again."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from recipes import functions, recipe_of, save_tiny_base, write_corpus
from sinklora.cache.sliding_window import Local
from sinklora.evaluate.topics import TopicRecord, make_topics, topic_accuracy, topic_answers
from sinklora.hf.device import default_device
from sinklora.reproduction.model_under_test import ModelUnderTest
from sinklora.reproduction.names import BASE, UNTRAINED
from sinklora.reproduction.retrieval.study import RetrievalStudy
from sinklora.reproduction.retrieval.topic_study import (
    chance_of_topics,
    models_of_first_seed,
    topic_accuracies,
    topic_lines,
    topic_sets,
    written_topics,
)
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec
from tiny_models import tiny_model


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained("data/base")  # type: ignore[no-any-return]


class Models:
    """Tiny models by name; notes which were loaded, where they went, and stops at one that is `missing`."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.places: list[Any] = []
        self.missing = ""

    def load(self, name: str) -> nn.Module:
        if name == self.missing:
            raise KeyboardInterrupt
        model: Any = tiny_model("llama-gqa", vocab_size=4096, max_position_embeddings=1024)
        move = model.to

        def noted(place: Any) -> Any:
            self.places.append(place)
            return move(place)

        model.to = noted
        self.loaded.append(name)
        return model  # type: ignore[no-any-return]

    def under_test(self, *names: str) -> list[ModelUnderTest]:
        return [ModelUnderTest(name, None, {"name": name}, partial(self.load, name)) for name in names]


def test_a_stopped_study_goes_on_with_the_model_where_it_was(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    sets = {"512": make_topics(tokenizer, tokens=512, records=2, seed=0)}
    models = Models()
    ask = partial(written_topics, tokenizer=tokenizer, sets=sets, runs=tmp_path, progress=False)
    models.missing = "second"
    with pytest.raises(KeyboardInterrupt):
        ask(models.under_test("first", "second"))
    models.missing = ""
    found = ask(models.under_test("first", "second"))
    assert models.loaded == ["first", "second"] and models.places == [default_device()] * 2
    answers = topic_answers(models.load("by hand").eval(), tokenizer, sets["512"], progress=False)  # type: ignore[arg-type]
    assert found == {name: {"512": answers} for name in ("first", "second")}
    assert topic_accuracies(found, sets)["second"] == {"512": topic_accuracy(answers, sets["512"])}
    assert ask(models.under_test("first")) == {"first": found["first"]}
    assert models.loaded == ["first", "second", "by hand"]


def test_caches_conversations_and_chat_formats_are_kept_apart(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    sets = {"512": make_topics(tokenizer, tokens=512, records=1, seed=0)}
    models = Models()
    ask = partial(written_topics, tokenizer=tokenizer, runs=tmp_path, progress=False)
    with pytest.raises(ValueError, match="no chat template"):
        ask(models.under_test("m"), sets=sets, chat=True)
    ask(models.under_test("m"), sets=sets)
    ask(models.under_test("m"), sets=sets, policy=Local(8))
    ask(models.under_test("m"), sets={"512": make_topics(tokenizer, tokens=512, records=1, seed=1)})
    tokenizer.chat_template = "{% for m in messages %}<ask>{{ m['content'] }}</ask>{% endfor %}"
    ask(models.under_test("m"), sets=sets, chat=True)
    assert len(models.loaded) == len(list(tmp_path.glob("topics-*/finished.json"))) == 4
    answers = {path.read_text() for path in tmp_path.glob("topics-*/answers.json")}
    assert len(answers) > 2


def test_weights_are_cast_and_rotary_angles_are_not() -> None:
    models = Models()
    [plain] = models.under_test("m")
    assert plain.identity == plain.key and plain.ready().dtype == torch.float32
    half = ModelUnderTest("m", None, {"name": "m"}, partial(models.load, "m"), dtype="bfloat16")
    model = half.ready()
    assert half.identity == {"name": "m", "dtype": "bfloat16"}
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_conversations_are_generated_or_read(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    made = topic_sets([], tokenizer, lengths=[512, 640], records=2)
    assert {name: len(records) for name, records in made.items()} == {"512 tokens": 2, "640 tokens": 2}
    assert made["512 tokens"] == make_topics(tokenizer, tokens=512, records=2, seed=0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        topic_sets([str(tmp_path / "nowhere.jsonl")], tokenizer, lengths=[256], records=2)
    with pytest.raises(ValueError, match="chat template"):
        topic_sets([], tokenizer, lengths=[256], records=2, chat=True)
    with pytest.raises(ValueError, match=r"lengths=\(\): expected at least one"):
        topic_sets([], tokenizer, lengths=[], records=2)
    with pytest.raises(ValueError, match="records=0: expected at least 1"):
        topic_sets([], tokenizer, lengths=[256], records=0)


def test_every_conversation_is_a_line() -> None:
    talks = [TopicRecord(7, "prompt", ("the sea", "bread")), TopicRecord(9, "prompt", ("wool", "tin", "ink"))]
    lines = topic_lines({"a model": {"few": ["It was the sea.", "tin"]}}, {"few": talks})
    assert lines.to_dict("list") == {
        "model": ["a model"] * 2,
        "set": ["few"] * 2,
        "conversation": [7, 9],
        "first topic": ["the sea", "wool"],
        "topics": [2, 3],
        "wrote": ["It was the sea.", "tin"],
        "correct": [True, False],
    }


def test_chance_is_one_topic_of_each_conversation() -> None:
    talks = [TopicRecord(0, "prompt", ("a", "b")), TopicRecord(1, "prompt", ("a", "b", "c", "d"))]
    assert chance_of_topics({"both": talks, "first": talks[:1]}) == {"both": 0.375, "first": 0.5}


def test_topics_are_asked_of_the_first_seed_as_it_was_trained(tmp_path: Path) -> None:
    texts = functions(6, 40)
    corpus = CorpusSpec(write_corpus(tmp_path / "corpus", {"train": texts}))
    save_tiny_base(tmp_path / "base", texts, positions=32)
    training = TrainSpec(
        base=str(tmp_path / "base"), corpus=corpus, context=64, steps=1, batch_size=1, micro_batch_size=1
    )
    study = RetrievalStudy(recipe_of(training), ("full", "sf"), (3, 4), (64,), further=96)
    models = models_of_first_seed(study, tmp_path / "runs", progress=False)
    named = [(model.name, model.seed) for model in models]
    assert named == [(BASE, None), (UNTRAINED, None), ("full", 3), ("sf", 3)]
