"""Facts planted in text: where they stand, and that answers are scored as a plain pass over them says."""

import random
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from helpers import assert_close
from sinklora.cache.full import Full
from sinklora.cache.h2o import H2O
from sinklora.cache.policies import CachePolicy
from sinklora.cache.sliding_window import Local
from sinklora.evaluate.fact_templates import ALIKE, DATE, NAME, NUMBER, TEMPLATES, AnswerKind
from sinklora.evaluate.planted_facts import (
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


def test_facts_stand_behind_sentences_at_the_depths_that_they_name(
    tokenizer: PreTrainedTokenizerBase, passages: list[FactPassage]
) -> None:
    for passage in passages:
        assert len(passage.ids) == TOKENS and len(passage.facts) == 4
        assert len({fact.template for fact in passage.facts}) == 4
        text = tokenizer.decode(passage.ids)
        for fact in passage.facts:
            said = " " + fact.template.statement.format(answer=fact.answer)
            before, _ = text.split(said)  # once
            assert not before or before.rstrip().endswith("."), "behind a sentence"
            count = len(tokenizer(before, add_special_tokens=False)["input_ids"])
            assert fact.depth == pytest.approx(count / TOKENS, abs=0.02)


def test_in_code_facts_are_comments_between_lines(tokenizer: PreTrainedTokenizerBase) -> None:
    """Dots stand inside of names there, where a fact would break the line."""
    lines = [
        f"    frame = pd.DataFrame(values_{number}).sort_values(by=names.first)\n" for number in range(100)
    ]
    texts = [np.array(tokenizer("".join(lines), add_special_tokens=False)["input_ids"])]
    for seed in range(5):
        [passage] = plant_facts(tokenizer, texts, tokens=TOKENS, seed=seed, code=True)
        found = tokenizer.decode(passage.ids).split("\n")
        said = {"# " + fact.template.statement.format(answer=fact.answer) for fact in passage.facts}
        assert len(said) == 4 and said <= set(found)
        rest = [line for line in found if line not in said]
        assert rest[:-1] == [line.rstrip("\n") for line in lines[: len(rest) - 1]], "no line is broken"


def test_facts_of_one_shape_differ_by_a_name_and_their_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    text = np.array(tokenizer("Nothing of this is asked for. " * 100)["input_ids"])
    [passage] = plant_facts(tokenizer, [text], tokens=800, seed=0, facts=16, templates=ALIKE)
    said = re.findall(r"The meter at (\w+) Station showed (\d{5}) units\.", tokenizer.decode(passage.ids))
    assert len({station for station, _ in said}) == 16
    assert [answer for _, answer in said] == [fact.answer for fact in passage.facts]
    for (station, _), fact in zip(said, passage.facts, strict=True):
        assert station in fact.template.question and station in fact.template.reply


def test_depths_are_uniform(tokenizer: PreTrainedTokenizerBase) -> None:
    """Of one fact in each of 200 texts without sentences: as many in every quarter of the text."""
    text = np.full(300, tokenizer("x", add_special_tokens=False)["input_ids"][0])
    planted = plant_facts(tokenizer, [text] * 200, tokens=300, seed=1, facts=1)
    depths = [fact.depth for passage in planted for fact in passage.facts]
    assert np.histogram(depths, 4, (0, 0.92))[0].min() > 35
    assert {fact.template.kind for passage in planted for fact in passage.facts} == {NUMBER, NAME, DATE}


def test_statement_and_question_never_share_the_answer_nor_their_sentence() -> None:
    for template in (*TEMPLATES, *ALIKE):
        assert template.statement.count("{answer}") == 1 and "{answer}" not in template.question
        before = template.statement.split("{answer}")[0].strip()
        assert before not in f"{template.question} {template.reply}"
    for templates in (TEMPLATES, ALIKE):
        assert len({template.question for template in templates}) == len(templates)


def test_answers_are_of_several_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    rng = random.Random(0)
    for kind in (NUMBER, NAME, DATE):
        for answer in (kind.draw(rng) for _ in range(50)):
            assert len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) > 1


def test_chance_is_one_of_the_possible_answers(passages: list[FactPassage]) -> None:
    """Five digits, the first not 0; a list of names; 28 days of 12 months."""
    assert [kind.count for kind in (NUMBER, NAME, DATE)] == [90_000, 24, 336]
    for fact in passages[0].facts:
        assert chance_nats(fact) == pytest.approx(np.log(fact.template.kind.count))


@pytest.mark.parametrize("kind", [NAME, DATE, NUMBER], ids=lambda kind: kind.name)
def test_no_answer_is_drawn_more_often_than_others(kind: AnswerKind) -> None:
    rng = random.Random(0)
    drawn = [kind.draw(rng) for _ in range(4000)]
    expected = kind.count * (1 - (1 - 1 / kind.count) ** 4000)
    assert len(set(drawn)) == pytest.approx(expected, rel=0.02)


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
    with pytest.raises(ValueError, match="facts=19: expected at most the 18"):
        plant_facts(tokenizer, [passages[0].ids], tokens=400, seed=0, facts=19)
