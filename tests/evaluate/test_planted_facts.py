"""Facts planted in text: where they stand, and that answers are scored as a plain pass over them says."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from helpers import assert_close
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy
from sinklora.cache.sliding_window import Local
from sinklora.evaluate.fact_templates import NUMBER_FACTS, WORD_FACTS
from sinklora.evaluate.planted_facts import (
    FACTS,
    FactPassage,
    PlantedFact,
    chance_nats,
    plant_facts,
    recalled_facts,
)
from sinklora.hf.budget_cache import BudgetCache

BASE = "data/base"
TOKENS = 400


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(BASE)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def passages(tokenizer: PreTrainedTokenizerBase) -> list[FactPassage]:
    texts = [
        np.array(tokenizer(" ".join(f"Line {i} of text {t} ends here." for i in range(200)))["input_ids"])
        for t in range(3)
    ]
    return plant_facts(tokenizer, texts, tokens=TOKENS, seed=0)


def asked(tokenizer: PreTrainedTokenizerBase, fact: PlantedFact) -> tuple[list[int], list[int]]:
    """Token ids of a fact's question, up to its answer, and of the answer."""
    question = f"\n\nQuestion: {fact.template.question}\nAnswer: {fact.template.reply}"
    texts = (question, f" {fact.answer}")
    first, second = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return first, second


def test_facts_are_two_numbers_and_two_words_at_even_depths(
    tokenizer: PreTrainedTokenizerBase, passages: list[FactPassage]
) -> None:
    for passage in passages:
        assert len(passage.ids) == TOKENS and len(passage.facts) == FACTS
        templates = [fact.template for fact in passage.facts]
        assert len(set(templates) & set(NUMBER_FACTS)) == len(set(templates) & set(WORD_FACTS)) == 2
        text = tokenizer.decode(passage.ids)
        for number, fact in enumerate(passage.facts):
            said = " " + fact.template.statement.format(answer=fact.answer)
            before, _ = text.split(said)  # once
            assert before.endswith("here.")  # behind a sentence
            count = len(tokenizer(before, add_special_tokens=False)["input_ids"])
            assert fact.depth == pytest.approx(count / TOKENS, abs=0.02)
            assert fact.depth == pytest.approx((2 * number + 1) / 8, abs=0.15)


def test_statement_and_question_never_share_the_answer_nor_their_sentence() -> None:
    for template in (*NUMBER_FACTS, *WORD_FACTS):
        assert template.statement.count("{answer}") == 1 and "{answer}" not in template.question
        asked = f"{template.question} {template.reply}"
        before = template.statement.split("{answer}")[0].strip()
        assert before not in asked
        assert not any(answer in asked for answer in template.answers)
        assert len(set(template.answers)) == len(template.answers)


def test_chance_is_one_of_the_possible_answers(passages: list[FactPassage]) -> None:
    assert {template.chance for template in NUMBER_FACTS} == {1 / 90_000}
    assert {template.chance for template in WORD_FACTS} == {0.1}
    for fact in passages[0].facts:
        expected = np.log(10) if fact.template.answers else np.log(90_000)
        assert chance_nats(fact) == pytest.approx(expected)


def test_the_same_seed_plants_the_same(
    tokenizer: PreTrainedTokenizerBase, passages: list[FactPassage]
) -> None:
    text = [np.arange(500) % 90 + 5]
    one, same, other = (plant_facts(tokenizer, text, tokens=300, seed=seed)[0] for seed in (3, 3, 4))
    assert np.array_equal(one.ids, same.ids) and one.facts == same.facts
    assert one.facts != other.facts


@pytest.mark.parametrize("later", [False, True])
def test_with_everything_kept_an_answer_is_as_likely_as_in_one_pass(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: list[FactPassage], later: bool
) -> None:
    make = partial(BudgetCache, model, Full())
    found = recalled_facts(
        model, tokenizer, passages, make, question_later=later, batch_size=2, progress=False
    )
    for passage, answers in zip(passages, found, strict=True):
        for fact, answer in zip(passage.facts, answers, strict=True):
            question, target = asked(tokenizer, fact)
            ids = torch.tensor([[*passage.ids.tolist(), *question, *target]])
            with torch.inference_mode():
                logits = model(ids).logits[0, -len(target) - 1 : -1]
            nats = cross_entropy(logits, torch.tensor(target), reduction="sum")
            assert_close(answer.nats, float(nats), atol=1e-3)
            assert answer.exact == (logits.argmax(-1).tolist() == target)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("policy", [H2O(0.2), Local(0.1)], ids=["h2o", "local"])
def test_under_a_budget_a_batch_answers_as_each_question_alone(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    passages: list[FactPassage],
    policy: CachePolicy,
    later: bool,
) -> None:
    make = partial(BudgetCache, model, policy)
    found = recalled_facts(model, tokenizer, passages, make, question_later=later, progress=False)
    for passage, answers in zip(passages, found, strict=True):
        for fact, answer in zip(passage.facts, answers, strict=True):
            question, target = asked(tokenizer, fact)
            cache, nats = make(), 0.0
            parts = [passage.ids.tolist(), question] if later else [[*passage.ids.tolist(), *question]]
            with torch.inference_mode():
                for part in (*parts, *([token] for token in target)):
                    logits = model(torch.tensor([part]), past_key_values=cache, use_cache=True).logits[0, -1]
                    place = cache.get_seq_length() - len(passage.ids) - len(question)
                    if 0 <= place < len(target):
                        nats -= float(logits.log_softmax(-1)[target[place]])
            assert_close(answer.nats, nats, atol=1e-3)


def test_wrong_passages_are_named(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, passages: list[FactPassage]
) -> None:
    make = partial(BudgetCache, model, H2O(0.2))
    with pytest.raises(ValueError, match="same number of tokens"):
        shorter = FactPassage(passages[0].ids[1:], passages[0].facts)
        recalled_facts(model, tokenizer, [passages[0], shorter], make)
    with pytest.raises(ValueError, match="expected at least one"):
        recalled_facts(model, tokenizer, [], make)
    with pytest.raises(ValueError, match="tokens=90"):
        plant_facts(tokenizer, [passages[0].ids], tokens=90, seed=0)
    with pytest.raises(ValueError, match="not 20"):
        plant_facts(tokenizer, [passages[0].ids[:20]], tokens=400, seed=0)
