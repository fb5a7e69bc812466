"""What is measured of a model, each way once, in small: what must not depend on how the model is kept."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache

from chat_models import LONG_TEXT
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.chat.documents import Document
from sinklora.chat.engine import Conversation
from sinklora.evaluate.document_questions import AskingSpec, DocumentQuestion, answer_questions
from sinklora.evaluate.lm_eval_model import LMEvalModel
from sinklora.evaluate.pass_keys import pass_key_documents, written_answers
from sinklora.evaluate.perplexity import measure_perplexity
from sinklora.evaluate.planted_facts import plant_facts, recalled_facts
from sinklora.evaluate.position_losses import losses_by_position
from sinklora.evaluate.read_prompt import ReadPrompt
from sinklora.evaluate.through_cache import continuation_nll
from sinklora.evaluate.topics import make_topics, topic_answers
from sinklora.hf.device import input_device
from sinklora.reproduction.cache.figures import kept_share
from sinklora.reproduction.patterns.attention_weights import visit_attention

Measured = Callable[[PreTrainedModel, PreTrainedTokenizerBase], Any]
IDS = np.random.default_rng(0).integers(3, 4000, 900)


def perplexity(model: PreTrainedModel, _: Any) -> Any:
    return measure_perplexity(model, [IDS[:150]], context=100, stride=50, progress=False).nll


def by_position(model: PreTrainedModel, _: Any) -> Any:
    return losses_by_position(model, [IDS[:100]], context=100, bucket=50, progress=False).tolist()


def attention(model: PreTrainedModel, _: Any) -> Any:
    looks: list[float] = []
    visit_attention(model, IDS[:90], lambda layer, weights: looks.append(float(weights[..., 0].sum())))
    return looks


def kept(model: PreTrainedModel, _: Any) -> Any:
    return kept_share(model, IDS[:150].tolist(), H2O(0.2)).tolist()


def continuations(model: PreTrainedModel, _: Any) -> Any:
    rows = [IDS[:120], IDS[100:220]]
    sizes = {"prompt_tokens": 100, "scored_tokens": 20, "batch_size": 1}
    return continuation_nll(model, rows, DynamicCache, progress=False, **sizes).tolist()


def facts(question_later: bool) -> Measured:
    def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
        planted = plant_facts(tokenizer, [IDS[:600]], tokens=460, seed=0)
        found = recalled_facts(
            model, tokenizer, planted, DynamicCache, question_later=question_later, progress=False
        )
        return [answer.nats for answer in found[0]]

    return measured


def keys(question_later: bool) -> Measured:
    def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
        documents = pass_key_documents(random.Random(0), tokenizer, tokens=200, trials=2, wording=0)
        return written_answers(
            model, tokenizer, documents, question_later=question_later, new_tokens=12, progress=False
        )

    return measured


def topics(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    return topic_answers(
        model, tokenizer, make_topics(tokenizer, tokens=300, records=2, seed=0), progress=False
    )


def prompts(model: PreTrainedModel, _: Any) -> Any:
    read = ReadPrompt(model, IDS[:150].tolist(), DynamicCache())
    return [read.greedy(8), read.nats([[5, 6, 7, 8]])]


def questions(question_later: bool) -> Measured:
    def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
        asked = [DocumentQuestion("a", LONG_TEXT[:400], "What is added?", ("the number",))]
        spec = AskingSpec(question_later=question_later, answer_tokens=6)
        rows = answer_questions(model, tokenizer, asked, DynamicCache, spec, progress=False)
        return [rows[0]["answer_nats"], rows[0]["written"]]

    return measured


def harness(kv: Any) -> Measured:
    def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
        ours = LMEvalModel(model, kv=kv, tokenizer=tokenizer, batch_size=1)
        arguments = (LONG_TEXT[:300], " return x + 9")
        generation = (LONG_TEXT[:300], {"until": ["\n\n"], "max_gen_toks": 8})
        scored = ours.loglikelihood([Instance("loglikelihood", {}, arguments, 0)], disable_tqdm=True)
        return [
            scored,
            ours.generate_until([Instance("generate_until", {}, generation, 0)], disable_tqdm=True),
        ]

    return measured


def chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    talk = Conversation(model, tokenizer, Full(), answer_tokens=12)
    talk.read(Document("text", LONG_TEXT[:400]))
    with torch.inference_mode():
        model(torch.from_numpy(IDS[None]).to(input_device(model)))  # somebody else's
    return "".join(talk.ask("What is added to x?"))


MEASURES = [
    pytest.param(perplexity, id="perplexity"),
    pytest.param(by_position, id="by position"),
    pytest.param(attention, id="attention"),
    pytest.param(kept, id="kept"),
    pytest.param(continuations, id="continuations"),
    pytest.param(facts(False), id="facts"),
    pytest.param(facts(True), id="facts, asked later"),
    pytest.param(keys(False), id="pass keys"),
    pytest.param(keys(True), id="pass keys, asked later"),
    pytest.param(topics, id="topics"),
    pytest.param(prompts, id="prompts"),
    pytest.param(questions(False), id="questions"),
    pytest.param(questions(True), id="questions, asked later"),
    pytest.param(harness("full"), id="harness"),
    pytest.param(harness(Full()), id="harness through a cache"),
    pytest.param(chat, id="chat"),
]
