"""Every study of bounded caches measures through the cache that its rows name, when and what they name."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from helpers import assert_close
from recipes import functions, recipe_of, write_corpus
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy
from sinklora.cache.sliding_window import Local
from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.evaluate.longbench.predictions import predict
from sinklora.evaluate.longbench.records import Prediction, Record
from sinklora.evaluate.openbookqa import answers
from sinklora.evaluate.planted_facts import plant_facts, recalled_facts
from sinklora.evaluate.read_prompt import ReadPrompt
from sinklora.evaluate.through_cache import continuation_nll, pass_keys, recalled
from sinklora.evaluate.topics import TopicRecord, make_topics, topic_answers
from sinklora.hf.budget_cache import BudgetCache
from sinklora.reproduction.cache import study as cache_study
from sinklora.reproduction.cache import text_study
from sinklora.reproduction.cache.question_study import (
    QuestionStudy,
    answer_questions,
    write_next_line_questions,
)
from sinklora.reproduction.cache.study import RECALL, RECALL_LATER, CacheStudy
from sinklora.reproduction.cache.text_study import FACTS, FACTS_LATER, NATS, TextStudy, measure_text
from sinklora.reproduction.longbench import study as longbench_study
from sinklora.reproduction.model_under_test import ModelUnderTest
from sinklora.reproduction.names import BASE as BASE_NAME
from sinklora.reproduction.retrieval import study as retrieval_study
from sinklora.reproduction.retrieval.keys_in_prose_study import KeysInProseStudy, measure_keys_in_prose
from sinklora.reproduction.retrieval.study import RetrievalStudy
from sinklora.reproduction.retrieval.topic_ranking import measure_topic_ranks
from sinklora.reproduction.retrieval.topic_study import written_topics
from sinklora.train.sources import CorpusSpec
from sinklora.train.spec import TrainSpec
from sinklora.train.tokens import tokenize_corpus

BASE = "data/base"

SOME = H2O(0.4)  # keeps some numbers and forgets others, and fewer where the question comes later


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusSpec:
    return CorpusSpec(write_corpus(tmp_path_factory.mktemp("texts"), {"test": functions(6, 40)}), "test")


@pytest.fixture
def subject(model: PreTrainedModel) -> ModelUnderTest:
    return ModelUnderTest("base", None, {"name": "base"}, lambda: model)


def values(rows: pd.DataFrame, policy: str, measure: str) -> list[float]:
    """What one policy's items of a measure are worth, in the order of the rows."""
    return [float(v) for v in rows[(rows.policy == policy) & (rows.measure == measure)].value]


# --- perplexity and recall of planted numbers ---------------------------------------------------------------


@pytest.fixture(scope="module")
def cache_rows(corpus: CorpusSpec, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Two seeds of four numbers, through caches that forget."""
    folder = tmp_path_factory.mktemp("cache-study")
    study = CacheStudy(BASE, corpus, 40, 4, 2, recall_tokens=120, trials=4, seeds=(0, 1))
    chosen = {"local": [Local(8)], "some": [SOME]}
    return cache_study.measure(study, chosen, runs=folder, cache=folder / "tokens", progress=False)


def test_documents_go_on_through_the_policys_cache(
    cache_rows: pd.DataFrame, corpus: CorpusSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = tokenize_corpus(corpus, tokenizer).documents()[:2]
    lengths = {"prompt_tokens": 40, "scored_tokens": 4}
    read = continuation_nll(model, texts, partial(BudgetCache, model, Local(8)), progress=False, **lengths)  # type: ignore[arg-type]
    found, full = (values(cache_rows, name, cache_study.PERPLEXITY) for name in ("local", "full"))
    assert_close(found, read.mean(1), atol=1e-4)
    assert np.abs(np.subtract(found, full)).min() > 0.01


def test_numbers_are_asked_for_when_and_by_the_seed_that_rows_name(
    cache_rows: pd.DataFrame, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    make, seen = partial(BudgetCache, model, SOME), []
    for measure, later in ((RECALL, False), (RECALL_LATER, True)):
        rows = cache_rows[(cache_rows.policy == "some") & (cache_rows.measure == measure)]
        found = dict(zip(rows.item, rows.value, strict=True))
        for seed in (0, 1):
            keys = pass_keys(tokenizer, tokens=120, trials=4, seed=seed)
            right = recalled(model, tokenizer, keys, make, question_later=later, progress=False)
            seen.append([found[f"{seed}/{trial}"] for trial in range(4)])
            assert seen[-1] == right.tolist()
        assert values(cache_rows, "some", measure) != values(cache_rows, "full", measure)
    at_once, later_ones = seen[:2], seen[2:]
    assert at_once != later_ones and at_once[0] != at_once[1] and later_ones[0] != later_ones[1]


def test_models_of_one_seed_are_asked_for_the_same_keys(
    tmp_path: Path, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [(BASE_NAME, None), ("full", 0), ("sf", 0), ("full", 1), ("sf", 1)]

    def subjects(*_: object) -> Iterator[ModelUnderTest]:
        for name, seed in named:
            yield ModelUnderTest(name, seed, {"name": name, "seed": seed}, lambda: model)

    monkeypatch.setattr(retrieval_study, "models_under_test", subjects)
    study = RetrievalStudy(recipe_of(TrainSpec(base=BASE, context=1024)), ("sf",), (0, 1), (96,), trials=2)
    rows = retrieval_study.measure(study, runs=tmp_path, progress=False)
    asked = {key: tuple(group.answer) for key, group in rows.groupby(["model", "seed"], dropna=False)}
    asked = {(name, None if pd.isna(seed) else seed): answer for (name, seed), answer in asked.items()}
    assert asked[BASE_NAME, None] == asked["full", 0] == asked["sf", 0]
    assert asked["full", 1] == asked["sf", 1] != asked["sf", 0]


# --- real text ----------------------------------------------------------------------------------------------


def test_facts_are_asked_for_through_the_policys_cache_when_rows_name(
    corpus: CorpusSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    study = TextStudy(BASE, 60, 4, passages=2, per_document=1, fact_tokens=240, fact_passages=1, facts=3)
    given = {"runs": tmp_path, "cache": tmp_path / "tokens", "progress": False}
    rows = measure_text(study, corpus, {"local": [Local(8)]}, **given)
    texts = text_study.passages_of(tokenize_corpus(corpus, tokenizer), tokens=240, passages=1, per_document=1)
    planted = plant_facts(tokenizer, [text.ids for text in texts], tokens=240, seed=0, facts=3)
    make, nats = partial(BudgetCache, model, Local(8)), {}
    for measure, later in ((FACTS, False), (FACTS_LATER, True)):
        [read] = recalled_facts(model, tokenizer, planted, make, question_later=later, progress=False)
        nats[measure] = [answer.nats for answer in read]
        found, full = (values(rows, policy, measure + NATS) for policy in ("local", "full"))
        assert_close(found, nats[measure], atol=1e-3)
        assert np.abs(np.subtract(found, full)).min() > 0.01
        assert values(rows, "local", measure) == [float(answer.exact) for answer in read]
    assert np.abs(np.subtract(nats[FACTS], nats[FACTS_LATER])).min() > 0.01


def test_passages_go_on_through_the_policys_cache(
    corpus: CorpusSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    study = TextStudy(BASE, 60, 4, passages=2, per_document=1, fact_tokens=240, fact_passages=1, facts=1)
    rows = measure_text(study, corpus, {"local": [Local(8)]}, runs=tmp_path, cache=tmp_path, progress=False)
    texts = text_study.passages_of(tokenize_corpus(corpus, tokenizer), tokens=64, passages=2, per_document=1)
    lengths = {"prompt_tokens": 60, "scored_tokens": 4}
    make = partial(BudgetCache, model, Local(8))
    read = continuation_nll(model, [text.ids for text in texts], make, progress=False, **lengths)  # type: ignore[arg-type]
    found, full = (values(rows, name, cache_study.PERPLEXITY) for name in ("local", "full"))
    assert_close(found, read.mean(1), atol=1e-4)
    assert np.abs(np.subtract(found, full)).min() > 0.01


# --- questions, keys in prose, topics, LongBench ------------------------------------------------------------


def test_questions_are_answered_through_the_policys_cache(
    corpus: CorpusSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    file = write_next_line_questions(corpus, BASE, questions=6, tokens=80, seed=0, folder=tmp_path)
    study = QuestionStudy(BASE, str(file))
    rows = answer_questions(study, {"local": [Local(8)]}, runs=tmp_path)
    bounded = LMEvalModel(model, kv=Local(8), tokenizer=tokenizer, batch_size=4)
    right = answers(bounded, study.task())
    local, full = rows[rows.policy == "local"], rows[rows.policy == "full"]
    assert dict(zip(local["item"], local.value, strict=True)) == right
    assert local.value.tolist() != full.value.tolist()


def in_a_cache(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, policy: CachePolicy | None
) -> ReadPrompt:
    cache = DynamicCache() if policy is None else BudgetCache(model, policy)
    return ReadPrompt(model, tokenizer(prompt)["input_ids"], cache)


CACHES: dict[str, CachePolicy | None] = {"full": None, "local": Local(8)}


def test_keys_in_prose_are_asked_for_through_the_policys_cache(
    corpus: CorpusSpec,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subject: ModelUnderTest,
    tmp_path: Path,
) -> None:
    study = KeysInProseStudy(BASE, corpus, (96,), 2)
    rows = measure_keys_in_prose(study, subject, CACHES, runs=tmp_path, progress=False)
    for name, policy in CACHES.items():
        found = rows[rows.cache == name].nats.tolist()
        for nats, document in zip(found, study.documents(tokenizer)[96], strict=True):
            ids = tokenizer(f" {document.answer}", add_special_tokens=False)["input_ids"]
            [losses] = in_a_cache(model, tokenizer, document.prompt, policy).nats([ids])
            digits = [any(map(str.isdigit, str(tokenizer.decode([token])))) for token in ids]
            assert_close(nats, float(np.compress(digits, losses).sum()), atol=1e-4)
    full, local = (rows[rows.cache == name].nats.to_numpy() for name in CACHES)
    assert np.abs(full - local).min() > 0.01


@pytest.fixture
def chatting(tmp_path: Path) -> str:
    """The base as a model to chat with; its folder."""
    made = AutoTokenizer.from_pretrained(BASE)
    made.chat_template = "{% for m in messages %}<ask>{{ m['content'] }}</ask>{% endfor %}"
    made.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_topics_are_ranked_through_the_policys_cache(
    chatting: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    subject: ModelUnderTest,
    tmp_path: Path,
) -> None:
    [record] = make_topics(tokenizer, tokens=400, records=1, seed=0)
    sets: dict[str, list[TopicRecord]] = {"made": [record]}
    rows = measure_topic_ranks(chatting, subject, sets, CACHES, runs=tmp_path, progress=False)
    names = [tokenizer(topic, add_special_tokens=False)["input_ids"] for topic in record.topics]
    found = rows.set_index("cache").nats
    for name, policy in CACHES.items():
        read = in_a_cache(model, tokenizer, f"<ask>{record.prompt}</ask>", policy)
        assert_close(found[name], [float(np.mean(losses)) for losses in read.nats(names)], atol=1e-4)
    assert np.abs(np.subtract(found["full"], found["local"])).max() > 0.01


def test_topics_are_answered_through_the_policys_cache(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, subject: ModelUnderTest, tmp_path: Path
) -> None:
    sets = {"made": make_topics(tokenizer, tokens=400, records=1, seed=0)}
    written = []
    for policy in CACHES.values():
        used: list[Path] = []
        asked = {"policy": policy, "runs": tmp_path, "used": used, "progress": False}
        written_topics([subject], tokenizer, sets, **asked)  # type: ignore[arg-type]
        make = DynamicCache if policy is None else partial(BudgetCache, model, policy)
        written.append(topic_answers(model, tokenizer, sets["made"], make, progress=False))
        assert json.loads((used[0] / "answers.json").read_text()) == {"made": written[-1]}
    assert written[0] != written[1]


def test_longbench_is_answered_through_the_policys_cache(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    [text] = functions(1, 20)
    records = [Record("", text, ("x",), 2, "lcc", "python", None, "one")]
    lengths = {"max_length": 400, "max_new_tokens": 12, "progress": False}
    ask: Callable[..., Any] = partial(longbench_study.predictions, tokenizer=tokenizer, sets={"lcc": records})
    found = ask([("base", {"name": "base"}, lambda: model)], policies=CACHES, runs=tmp_path, **lengths)
    said: dict[str, list[Prediction]] = {}
    for name, policy in CACHES.items():
        make = None if policy is None else partial(BudgetCache, model, policy)
        out = tmp_path / f"{name}.jsonl"
        said[name] = predict(model, tokenizer, records, "lcc", out=out, cache_factory=make, **lengths)  # type: ignore[arg-type]
    assert found == {"base": {"lcc": said["full"]}, "base, local": {"lcc": said["local"]}}
    assert said["full"] != said["local"]
